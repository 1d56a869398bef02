"""Published reward checkpoints with small sizes, and forward passes written on their original names."""

import math

import torch
from PIL import Image
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil

from marble_core.rewards.weights import originals


def shrunk(config, **sizes):
    """The published configuration, with other sizes."""
    return type(config)(**{**config.to_dict(), **sizes})


SIZES = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
CLIP_TEXT = shrunk(originals.HPSV2.text_config, **SIZES, vocab_size=514, bos_token_id=512, eos_token_id=513)
CLIP_VISION = shrunk(originals.HPSV2.vision_config, **SIZES, image_size=32, patch_size=8)
CLIP = CLIPConfig(text_config=CLIP_TEXT.to_dict(), vision_config=CLIP_VISION.to_dict(), projection_dim=12)
VISION_SIZES = {**SIZES, "hidden_size": 24, "num_attention_heads": 4}
VISION = shrunk(originals.IMAGE_REWARD_VISION, **VISION_SIZES, image_size=32, patch_size=8)
TEXT_SIZES = {"vocab_size": 60, "max_position_embeddings": 40, "encoder_hidden_size": 24, "bos_token_id": 2, "sep_token_id": 3}
TEXT = shrunk(originals.IMAGE_REWARD_TEXT, **SIZES, **TEXT_SIZES)
UNUSED = {  # what ImageReward.pt holds besides
    "blip.text_encoder.embeddings.position_ids": (1, 40),
    "blip.vision_proj.weight": (8, 24),
    "blip.vision_proj.bias": (8,),
    "blip.text_proj.weight": (8, 16),
    "blip.text_proj.bias": (8,),
}


# --------------------------------------------------------------------------------- the way back, and other forward passes
def open_clip_names(model):
    """A CLIPModel's tensors as open_clip names and lays them out."""
    tensors = model.state_dict()
    out = {"logit_scale": tensors["logit_scale"]}
    for tower, prefix in (("text_model", ""), ("vision_model", "visual.")):
        for i in range(2):
            ours, theirs = f"{tower}.encoder.layers.{i}.", f"{prefix}transformer.resblocks.{i}."
            for kind in ("weight", "bias"):
                qkv = [tensors[f"{ours}self_attn.{part}_proj.{kind}"] for part in ("q", "k", "v")]
                out[f"{theirs}attn.in_proj_{kind}"] = torch.cat(qkv)
                out[f"{theirs}attn.out_proj.{kind}"] = tensors[f"{ours}self_attn.out_proj.{kind}"]
                out[f"{theirs}ln_1.{kind}"] = tensors[f"{ours}layer_norm1.{kind}"]
                out[f"{theirs}ln_2.{kind}"] = tensors[f"{ours}layer_norm2.{kind}"]
                out[f"{theirs}mlp.c_fc.{kind}"] = tensors[f"{ours}mlp.fc1.{kind}"]
                out[f"{theirs}mlp.c_proj.{kind}"] = tensors[f"{ours}mlp.fc2.{kind}"]
    for kind in ("weight", "bias"):
        out[f"visual.ln_pre.{kind}"] = tensors[f"vision_model.pre_layrnorm.{kind}"]
        out[f"visual.ln_post.{kind}"] = tensors[f"vision_model.post_layernorm.{kind}"]
        out[f"ln_final.{kind}"] = tensors[f"text_model.final_layer_norm.{kind}"]
    out["visual.class_embedding"] = tensors["vision_model.embeddings.class_embedding"]
    out["visual.positional_embedding"] = tensors["vision_model.embeddings.position_embedding.weight"]
    out["visual.conv1.weight"] = tensors["vision_model.embeddings.patch_embedding.weight"]
    out["visual.proj"] = tensors["visual_projection.weight"].T.contiguous()
    out["token_embedding.weight"] = tensors["text_model.embeddings.token_embedding.weight"]
    out["positional_embedding"] = tensors["text_model.embeddings.position_embedding.weight"]
    out["text_projection"] = tensors["text_projection.weight"].T.contiguous()
    assert sum(value.numel() for value in out.values()) == sum(value.numel() for value in tensors.values())
    return out


def norm(w, name, x, eps):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def open_clip_block(w, name, x, heads, mask=None):
    """A residual block of open_clip, whose attention is torch's own."""
    y = norm(w, f"{name}.ln_1", x, 1e-5).transpose(0, 1)
    attended, _ = F.multi_head_attention_forward(
        y, y, y, y.shape[-1], heads, w[f"{name}.attn.in_proj_weight"], w[f"{name}.attn.in_proj_bias"], None, None, False, 0.0,
        w[f"{name}.attn.out_proj.weight"], w[f"{name}.attn.out_proj.bias"], attn_mask=mask,
    )  # fmt: skip
    x = x + attended.transpose(0, 1)
    return x + linear(w, f"{name}.mlp.c_proj", F.gelu(linear(w, f"{name}.mlp.c_fc", norm(w, f"{name}.ln_2", x, 1e-5))))


def open_clip_image(w, pixels, heads=2):
    x = F.conv2d(pixels, w["visual.conv1.weight"], stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([w["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + w["visual.positional_embedding"]
    x = norm(w, "visual.ln_pre", x, 1e-5)
    for i in range(2):
        x = open_clip_block(w, f"visual.transformer.resblocks.{i}", x, heads)
    return norm(w, "visual.ln_post", x[:, 0], 1e-5) @ w["visual.proj"]


def open_clip_text(w, ids, heads=2):
    """One text, without padding: its last token is the end."""
    x = w["token_embedding.weight"][ids][None] + w["positional_embedding"][: len(ids)]
    mask = torch.full((len(ids), len(ids)), -math.inf).triu(1)
    for i in range(2):
        x = open_clip_block(w, f"transformer.resblocks.{i}", x, heads, mask)
    return norm(w, "ln_final", x, 1e-5)[0, -1] @ w["text_projection"]


def image_reward_names(vision, text, head):
    """ImageReward.pt's names for the three parts, and what it holds besides."""
    out = {name: torch.randn(shape) for name, shape in UNUSED.items()}
    v = vision.state_dict()
    out["blip.visual_encoder.cls_token"] = v["embeddings.class_embedding"]
    out["blip.visual_encoder.pos_embed"] = v["embeddings.position_embedding"]
    for kind in ("weight", "bias"):
        out[f"blip.visual_encoder.patch_embed.proj.{kind}"] = v[f"embeddings.patch_embedding.{kind}"]
        out[f"blip.visual_encoder.norm.{kind}"] = v[f"post_layernorm.{kind}"]
        for i in range(2):
            ours, theirs = f"encoder.layers.{i}.", f"blip.visual_encoder.blocks.{i}."
            out[f"{theirs}norm1.{kind}"] = v[f"{ours}layer_norm1.{kind}"]
            out[f"{theirs}norm2.{kind}"] = v[f"{ours}layer_norm2.{kind}"]
            out[f"{theirs}attn.qkv.{kind}"] = v[f"{ours}self_attn.qkv.{kind}"]
            out[f"{theirs}attn.proj.{kind}"] = v[f"{ours}self_attn.projection.{kind}"]
            out[f"{theirs}mlp.fc1.{kind}"] = v[f"{ours}mlp.fc1.{kind}"]
            out[f"{theirs}mlp.fc2.{kind}"] = v[f"{ours}mlp.fc2.{kind}"]
    out |= {f"blip.text_encoder.{name}": value for name, value in text.state_dict().items()}
    out |= {f"mlp.{name}": value for name, value in head.state_dict().items()}
    return out


def attend(query, key, value, heads):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (query, key, value))
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights @ v).transpose(-3, -2).flatten(-2)


def image_reward(w, pixels, ids):
    """One image and one text without padding, by the original names: BLIP's ViT, its BERT and the MLP, standardised."""
    p = "blip.visual_encoder."
    x = F.conv2d(pixels[None], w[f"{p}patch_embed.proj.weight"], w[f"{p}patch_embed.proj.bias"], stride=8)[0].flatten(1).T
    x = torch.cat([w[f"{p}cls_token"][0], x]) + w[f"{p}pos_embed"][0]
    for i in range(2):
        b = f"{p}blocks.{i}."
        qkv = linear(w, f"{b}attn.qkv", norm(w, f"{b}norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(w, f"{b}attn.proj", attend(*qkv, heads=4))
        x = x + linear(w, f"{b}mlp.fc2", F.gelu(linear(w, f"{b}mlp.fc1", norm(w, f"{b}norm2", x, 1e-6))))
    patches = norm(w, f"{p}norm", x, 1e-6)
    e, eps = "blip.text_encoder.embeddings.", 1e-12
    x = w[f"{e}word_embeddings.weight"][ids] + w[f"{e}position_embeddings.weight"][: len(ids)]
    x = norm(w, f"{e}LayerNorm", x, eps)
    for i in range(2):
        b = f"blip.text_encoder.encoder.layer.{i}."
        for kind in ("attention", "crossattention"):
            seen, a = (x if kind == "attention" else patches), f"{b}{kind}"
            key, value = linear(w, f"{a}.self.key", seen), linear(w, f"{a}.self.value", seen)
            found = attend(linear(w, f"{a}.self.query", x), key, value, heads=2)
            x = norm(w, f"{a}.output.LayerNorm", x + linear(w, f"{a}.output.dense", found), eps)
        inner = linear(w, f"{b}output.dense", F.gelu(linear(w, f"{b}intermediate.dense", x)))
        x = norm(w, f"{b}output.LayerNorm", x + inner, eps)
    y = x[0]
    for i in (0, 2, 4, 6, 7):
        y = linear(w, f"mlp.layers.{i}", y)
    return (y.item() - 0.16717362830052426) / 1.0333394966054072


def pictures_for(images, side=32):
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return processor(images=[Image.fromarray(image) for image in images], return_tensors="pt").pixel_values
