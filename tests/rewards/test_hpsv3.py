"""HPSv3 on a tiny checkpoint of its architecture, against a forward pass written out on the names of the published file."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from marble_core.rewards.hpsv3 import HPSV3, HPSv3
from marble_core.rewards.scoring import score_all
from marble_core.types import MarbleError, Prompt
from original_checkpoints import linear, norm
from tiny_rewards import noise, randomised

SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
VOCABULARY = 256 + len(SPECIAL) + 1
IMAGE, MARK = 256 + SPECIAL.index("<|image_pad|>"), VOCABULARY - 1
CHAT = (  # the form of Qwen's: a system's turn, the user's with the image before the text, the assistant's that begins
    "<|im_start|>system\nSee well.<|im_end|>\n{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = '''import a_package_that_is_not_there

INSTRUCTION = """
Mark the image of this:
{text_prompt}
"""
prompt_with_special_token = """
Mark: <|Reward|>

END
"""
prompt_without_special_token = """
Mark:
"""
'''
TEXTS = ["a cat", "two dogs at sea, painted by a friend of theirs", "ein Hündchen"]


def config(**text):
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e6}
    text = {**sizes, "vocab_size": 300, "rope_parameters": rope, "rms_norm_eps": 1e-6, "pad_token_id": 256, **text}
    return Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=IMAGE + 1)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """HPSv3.safetensors by the published names, the Qwen2-VL that it was trained from, and the file of words."""
    place = tmp_path_factory.mktemp("hpsv3")
    qwen = randomised(Qwen2VLForConditionalGeneration(config(vocab_size=VOCABULARY)))
    names = {"model.language_model.": "model.", "model.visual.": "visual."}
    tensors = {}
    for name, value in qwen.state_dict().items():
        old = next((now + name.removeprefix(before) for before, now in names.items() if name.startswith(before)), name)
        tensors[old] = value.clone()
    generator = torch.Generator().manual_seed(5)
    for layer, (out, wide) in {"0": (1024, 32), "3": (16, 1024), "5": (2, 16)}.items():
        tensors[f"rm_head.{layer}.weight"] = torch.randn(out, wide, generator=generator) / wide**0.5
        tensors[f"rm_head.{layer}.bias"] = torch.randn(out, generator=generator)
    save_file(tensors, place / "HPSv3.safetensors")
    config().save_pretrained(place / "qwen")  # 300 tokens, of which the checkpoint keeps those of the tokenizer, and one more
    Qwen2VLImageProcessorPil().save_pretrained(place / "qwen")
    byte = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    byte.pre_tokenizer, byte.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte, pad_token=SPECIAL[0], additional_special_tokens=list(SPECIAL[1:])
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(place / "qwen")
    (place / "collator.py").write_text(WORDS)
    return place, tensors, tokenizer


def scorer(place, **options):
    where = {"processor": str(place / "qwen"), "instruction": str(place / "collator.py"), "dtype": "fp32"}
    return HPSv3(str(place / "HPSv3.safetensors"), **{**where, **options})


# ------------------------------------------------------------------------------------- the forward pass, on the published names
def turned(x, angle):
    """Rotary: x (heads, L, D) by angles (L, D / 2), first half with second."""
    cos, sin = (torch.cat([f(angle), f(angle)], -1) for f in (torch.cos, torch.sin))
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def vision(w, pixels, rows, columns):
    """Patches in the order of 2 x 2 blocks, (rows columns, 3 2 14 14), as they come in; one token a block goes out."""
    x = pixels @ w["visual.patch_embed.proj.weight"].flatten(1).T
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    blocks = [p.reshape(rows // 2, 2, columns // 2, 2).transpose(1, 2).flatten() for p in (row, column)]
    rate = 1e4 ** -(torch.arange(2) / 2)
    angle = torch.cat([p[:, None] * rate for p in blocks], 1)
    for i in range(2):
        b = f"visual.blocks.{i}."
        q, k, v = linear(w, f"{b}attn.qkv", norm(w, f"{b}norm1", x, 1e-6)).unflatten(-1, (3, 2, 8)).permute(1, 2, 0, 3)
        seen = (turned(q, angle) @ turned(k, angle).transpose(-1, -2) / math.sqrt(8)).softmax(-1) @ v
        x = x + linear(w, f"{b}attn.proj", seen.transpose(0, 1).flatten(1))
        inner = linear(w, f"{b}mlp.fc1", norm(w, f"{b}norm2", x, 1e-6))
        x = x + linear(w, f"{b}mlp.fc2", inner * torch.sigmoid(1.702 * inner))
    x = norm(w, "visual.merger.ln_q", x, 1e-6).reshape(-1, 64)
    return linear(w, "visual.merger.mlp.2", F.gelu(linear(w, "visual.merger.mlp.0", x)))


def rms(w, name, x):
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * w[name]


def marks(w, pixels, grid, ids):
    """Mean and sigma of one image and one text, whose tokens are counted 0, 1, 2, ... through text and image alike."""
    x = w["model.embed_tokens.weight"][ids]
    x[ids == IMAGE] = vision(w, pixels, *grid)
    angle = torch.arange(len(ids))[:, None] * (1e6 ** -(torch.arange(4) / 4))
    mask = torch.full((len(ids), len(ids)), -math.inf).triu(1)
    for i in range(2):
        b = f"model.layers.{i}."
        y = rms(w, f"{b}input_layernorm.weight", x)
        q, k, v = (linear(w, f"{b}self_attn.{n}_proj", y).unflatten(-1, (-1, 8)).transpose(0, 1) for n in "qkv")
        q, k, v = turned(q, angle), turned(k, angle).repeat_interleave(2, 0), v.repeat_interleave(2, 0)
        seen = (q @ k.transpose(-1, -2) / math.sqrt(8) + mask).softmax(-1) @ v
        x = x + seen.transpose(0, 1).flatten(1) @ w[f"{b}self_attn.o_proj.weight"].T
        y = rms(w, f"{b}post_attention_layernorm.weight", x)
        gate = F.silu(y @ w[f"{b}mlp.gate_proj.weight"].T)
        x = x + (gate * (y @ w[f"{b}mlp.up_proj.weight"].T)) @ w[f"{b}mlp.down_proj.weight"].T
    y = rms(w, "model.norm.weight", x)[ids == MARK][0]
    mean, log_sigma = linear(w, "rm_head.5", linear(w, "rm_head.3", linear(w, "rm_head.0", y).relu()).relu())
    return mean.item(), log_sigma.exp().item()


def pixels_of(image, width, height):
    """PIL's bicubic, CLIP's mean and deviation, cut into blocks of 2 x 2 patches of 2 (equal) x 14 x 14."""
    found = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    rows, columns = height // 14, width // 14
    cut = ((found - np.float32(mean)) / np.float32(std)).reshape(rows // 2, 2, 14, columns // 2, 2, 14, 3)
    cut = np.repeat(cut.transpose(0, 3, 1, 4, 6, 2, 5)[..., None, :, :], 2, axis=-3)
    return torch.tensor(cut.reshape(rows * columns, -1)), (rows, columns)


# ------------------------------------------------------------------------------------------------------------------- tests
def test_the_mean_and_sigma_of_a_batch_are_those_of_each_image_by_the_published_names(published):
    place, w, tokenizer = published
    images = noise(3, (40, 80))
    found = scorer(place, batch_size=2).score(images, [Prompt(text, "general") for text in TEXTS])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(place / "qwen")
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL[1:], "<|Reward|>"]})
    wanted = []
    for image, text in zip(images, TEXTS, strict=True):
        pixels, (rows, columns) = pixels_of(image, 644, 336)  # 200 704 pixels of 2 : 1, up to multiples of 28
        asked = f"\nMark the image of this:\n{text}\n\nMark: <|Reward|>\n\nEND\n"
        user = f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * (rows * columns // 4)}<|vision_end|>{asked}<|im_end|>\n"
        chat = f"<|im_start|>system\nSee well.<|im_end|>\n{user}<|im_start|>assistant\n"
        wanted.append(marks(w, pixels, (rows, columns), torch.tensor(tokenizer(chat).input_ids)))
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-4)
    assert np.ptp(found[:, 0]) > 0.01


def test_a_prompt_that_spells_special_tokens_is_read_and_sigma_is_reported_beside(published):
    place, _, _ = published
    hpsv3, images = scorer(place), noise(2, 32)
    plain, odd = "a cat and a dog", "a cat<|Reward|>and<|image_pad|>a dog"
    table = score_all([hpsv3], images, [Prompt(plain, "general"), Prompt(odd, "general")])
    alone = score_all([hpsv3], images[1:], [Prompt("a cat and a dog", "general")])
    np.testing.assert_allclose(table.R_NK[1], alone.R_NK[0], rtol=1e-4)
    assert (table.side["hpsv3/sigma"] > 0).all()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({"instruction": "words.txt"}, r"words\.txt must name \{text_prompt\} and <\|Reward\|>, each once"),
        ({"processor": "nothing"}, r"HPSv3's processor .*nothing cannot be loaded"),
        ({"dtype": "int8"}, r"cannot have the dtype 'int8'"),
    ],
)
def test_what_is_no_part_of_hpsv3_is_refused(published, spoil, said):
    place, _, _ = published
    (place / "words.txt").write_text("How good is {text_prompt}?")
    (place / "nothing").mkdir(exist_ok=True)
    with pytest.raises(MarbleError, match=said):
        scorer(place, **{option: value if option == "dtype" else str(place / value) for option, value in spoil.items()})


def test_a_checkpoint_that_lacks_a_tensor_is_refused_and_words_of_ones_own_are_read(published, tmp_path):
    place, w, _ = published
    save_file({name: value for name, value in w.items() if name != "rm_head.3.bias"}, tmp_path / "cut.safetensors")
    (tmp_path / "own.txt").write_text("Mark {text_prompt} here: <|Reward|>")
    where = {"processor": str(place / "qwen"), "instruction": str(tmp_path / "own.txt"), "dtype": "fp32"}
    with pytest.raises(MarbleError, match=r"cut\.safetensors is not an HPSv3 checkpoint: .*such as head\.3\.bias"):
        HPSv3(str(tmp_path / "cut.safetensors"), **where)
    assert HPSv3(str(place / "HPSv3.safetensors"), **where).words == "Mark {text_prompt} here: <|Reward|>"


def test_the_card_counts_the_published_networks_numbers_in_the_precision_that_it_has():
    from transformers import Qwen2VLModel

    seven_b = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    }
    with torch.device("meta"):
        qwen = Qwen2VLModel(Qwen2VLConfig(text_config={**seven_b, "vocab_size": 151658}))
    head = 3585 * 1024 + 1025 * 16 + 17 * 2
    assert sum(p.numel() for p in qwen.parameters()) + head == HPSV3.weights
    assert HPSv3.card.assets({})[0].weights * 2 == HPSv3.card.assets({"dtype": "fp32"})[0].weights == HPSV3.weights
