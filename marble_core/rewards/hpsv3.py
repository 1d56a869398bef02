"""HPSv3 (arXiv 2508.03789): Qwen2-VL-7B reads image and prompt, and a head on one token gives a mark. See docs/rewards.md, section 2e."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from marble_core.rewards.checkpoints import named
from marble_core.rewards.self_check import check_colors
from marble_core.storage.artifacts import Part
from marble_core.storage.uri import resolve
from marble_core.types import MarbleError, Options, Prompt, RewardAsset, RewardCard

if TYPE_CHECKING:
    from torch import Tensor

HPSV3 = RewardAsset(
    "hf://MizzenAI/HPSv3/HPSv3.safetensors",
    "file",
    licence="MIT",
    size="17 GB",
    weights=7_748_610_610,
    activations=900 * 2 * 18944,  # tokens x both halves of an MLP's inner width
    images=8,
)
QWEN = RewardAsset("Qwen/Qwen2-VL-7B-Instruct", "processor", "Apache-2.0", "11 MB", "sizes and tokenizer only")
# Pinned: later forks ask for other things in the file of this name, and the mark is that of the words it was trained with.
WORDS = RewardAsset(
    "https://raw.githubusercontent.com/MizzenAI/HPSv3/bd0c5fcb5f587617b0169c07222ab78d01e2f3c2/hpsv3/dataset/data_collator_qwen.py",
    "processor",
    "MIT",
    "20 kB",
    "what the model is asked, in its authors' words",
)
REWARD = "<|Reward|>"  # the token that the head reads, one more than Qwen's tokenizer has
PIXELS = 256 * 28 * 28  # of every image, kept in shape: 448 x 448 for a square


def _assets(options: Options) -> list[RewardAsset]:
    halved = 1 if options.get("dtype", "bf16") == "fp32" else 2  # the estimate counts four bytes each
    model = [replace(asset, weights=asset.weights // halved) for asset in named(options, "checkpoint", HPSV3)]
    return model + named(options, "processor", QWEN) + named(options, "instruction", WORDS)


class HPSv3:
    """The mean of a preference that is normally distributed, published averages -2 to 12; applies to every prompt.

    ``checkpoint`` is the published file. ``processor`` is the Qwen2-VL that it was trained from, for its sizes, tokenizer and chat.
    ``instruction`` is the released file that words the question, which is read and not run; or a text of your own that names the
    prompt as ``{text_prompt}`` and the mark's place as ``<|Reward|>``. Beside the mean stands ``sigma``, that distribution's width.
    """

    name = "hpsv3"
    value_range = (-30.0, 30.0)
    side = ("sigma",)
    card = RewardCard(
        assets=_assets, says="Human preference by HPSv3, which is Qwen2-VL-7B with a head: published averages are -2 to 12."
    )

    def __init__(
        self,
        checkpoint: str = HPSV3.uri,
        processor: str = QWEN.uri,
        instruction: str = WORDS.uri,
        device: str | None = None,
        dtype: str = "bf16",
        batch_size: int = 8,
    ) -> None:
        from transformers import Qwen2VLConfig
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        from marble_core.rewards.weights.pretrained import default_device, first_line, load_tokenizer, place

        path = resolve(processor, Part.PROCESSOR)
        try:
            config: Any = Qwen2VLConfig.from_pretrained(path)
            images = Qwen2VLImageProcessorPil.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise MarbleError(f"HPSv3's processor {processor} cannot be loaded: {first_line(error)}.") from error
        file = resolve(checkpoint, Part.FILE)
        self.model = place(_load(file, config, dtype), device or default_device(), dtype, f"The HPSv3 checkpoint {checkpoint}")
        self.model["head"].float()
        self.modules = (self.model,)
        vocabulary = config.text_config.vocab_size
        self.tokenizer = load_tokenizer(path, vocabulary - 1, "HPSv3's tokenizer")
        self.tokenizer.add_special_tokens({"additional_special_tokens": [REWARD]})
        if self.tokenizer.convert_tokens_to_ids(REWARD) != vocabulary - 1 or not self.tokenizer.chat_template:
            raise MarbleError(f"HPSv3's processor {processor} has another vocabulary than the checkpoint, or no chat_template.")
        self.tokenizer.padding_side = "right"
        self.images, self.batch_size, self.words = images, batch_size, read_words(resolve(instruction, Part.PROCESSOR))

    def applies(self, prompt: Prompt) -> bool:
        return True

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        """(N, 2): mean and sigma."""
        parts = [slice(i, i + self.batch_size) for i in range(0, len(prompts), self.batch_size)]
        return np.concatenate([self._marks(images_NHWC[part], prompts[part]) for part in parts])

    def self_check(self) -> None:
        check_colors(self.name, lambda images_NHWC, prompts: self.score(images_NHWC, prompts)[:, 0])

    def _marks(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        import torch

        qwen, head = self.model["qwen"], self.model["head"]
        side = {"shortest_edge": PIXELS, "longest_edge": PIXELS}
        seen = self.images(images=list(images_NHWC), size=side, return_tensors="pt")
        patches = int(seen.image_grid_thw[0].prod()) // self.images.merge_size**2
        texts = [self._asked(prompt.text, patches) for prompt in prompts]
        read = self.tokenizer(texts, padding=True, return_tensors="pt").to(qwen.device)
        # Plain counting, though Qwen2-VL counts an image's rows and columns: the release hands the model no ids to tell them by.
        position = (read.attention_mask.cumsum(-1) - 1).clamp(min=0).expand(3, -1, -1)
        with torch.no_grad(), torch.autocast(qwen.device.type, enabled=False):
            states = qwen(
                input_ids=read.input_ids,
                attention_mask=read.attention_mask,
                position_ids=position,
                pixel_values=seen.pixel_values.to(qwen.device, qwen.dtype),
                image_grid_thw=seen.image_grid_thw.to(qwen.device),
                use_cache=False,
            ).last_hidden_state
            marks: Tensor = head(states[read.input_ids == self.tokenizer.convert_tokens_to_ids(REWARD)].float()).double().cpu()
        return torch.stack([marks[:, 0], marks[:, 1].exp()], 1).numpy()

    def _asked(self, prompt: str, patches: int) -> str:
        for token in self.tokenizer.get_added_vocab():  # a prompt has no second mark and no second image
            prompt = prompt.replace(token, " ")
        content = [{"type": "image"}, {"type": "text", "text": self.words.replace("{text_prompt}", prompt)}]
        chat = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        image = self.tokenizer.convert_ids_to_tokens(self.model["qwen"].config.image_token_id)
        return chat.replace(image, image * patches, 1)


def read_words(path: Path) -> str:
    """The question: of the released Python file its two texts, joined; of any other file all. Raises MarbleError."""
    try:
        words = path.read_text(encoding="utf-8")
        assigned = [n for n in ast.parse(words).body if isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant)]
        constants: dict[str, Any] = {ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in assigned}
        words = constants["INSTRUCTION"] + constants["prompt_with_special_token"]
    except (SyntaxError, LookupError):
        pass
    except (OSError, ValueError) as error:
        raise MarbleError(f"HPSv3's instruction {path} cannot be read ({type(error).__name__}): give a text file.") from None
    if words.count(REWARD) != 1 or words.count("{text_prompt}") != 1:
        raise MarbleError(f"HPSv3's instruction {path} must name {{text_prompt}} and {REWARD}, each once.")
    return words


def _load(file: Path, config: Any, dtype: str) -> Any:
    """``qwen``, a Qwen2VLModel without its language head, and ``head``: fills ``config``'s vocabulary from the file."""
    import torch
    from torch import nn
    from transformers import Qwen2VLModel

    from marble_core.rewards.weights.originals import read_original, require_exact
    from marble_core.rewards.weights.pretrained import DTYPES, quiet

    def head() -> nn.Sequential:
        wide = config.text_config.hidden_size
        layers = nn.Linear(wide, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
        return nn.Sequential(*layers)

    tensors = {renamed(name): value for name, value in read_original(file).items()}
    tensors.pop("lm_head.weight", None)  # says the next word, and is not asked
    if (embedding := tensors.get("qwen.language_model.embed_tokens.weight")) is not None:
        config.text_config.vocab_size = len(embedding)
    with torch.device("meta"):
        empty = nn.ModuleDict({"qwen": Qwen2VLModel(config), "head": head()})
    require_exact(tensors, empty, file, "an HPSv3 checkpoint")
    part = {name: {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")} for name in empty}
    with quiet():
        kept = DTYPES.get(dtype, torch.float32)
        qwen = Qwen2VLModel.from_pretrained(None, config=config, state_dict=part["qwen"], dtype=kept)
    filled = head()
    filled.load_state_dict(part["head"])
    return nn.ModuleDict({"qwen": qwen, "head": filled})


def renamed(name: str) -> str:
    """From the file's names, which transformers' Qwen2-VL had before 4.52, or those since, to ours."""
    for before, now in (
        ("rm_head.", "head."),
        ("model.visual.", "qwen.visual."),
        ("model.language_model.", "qwen.language_model."),
        ("visual.", "qwen.visual."),
        ("model.", "qwen.language_model."),
    ):
        if name.startswith(before):
            return now + name.removeprefix(before)
    return name
