"""Reward checkpoints as their authors published them. The only file that reads pickled tensors, with weights_only=True.

Facts: docs/rewards.md, sections 2b, 2d and 6. Every file is mapped strictly: a tensor that is missing, unknown or of another
shape is an error, and those that no reward uses are named in original_keys.py.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipVisionConfig, CLIPConfig, CLIPModel
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from marble_core.rewards.weights.mlp_head import Head
from marble_core.rewards.weights.original_keys import blip_from_image_reward, clip_from_open_clip
from marble_core.rewards.weights.pretrained import quiet
from marble_core.types import MarbleError

_VIT_H = {"num_attention_heads": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-5}
HPSV2 = CLIPConfig(
    text_config={
        **_VIT_H, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "vocab_size": 49408,
        "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407,
    },
    vision_config={
        **_VIT_H, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "image_size": 224, "patch_size": 14,
    },
    projection_dim=1024,
)  # fmt: skip
IMAGE_REWARD_VISION = BlipVisionConfig(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224, patch_size=16,
    hidden_act="gelu", layer_norm_eps=1e-6,
)  # fmt: skip
IMAGE_REWARD_TEXT = BlipTextConfig(
    vocab_size=30524, hidden_size=768, encoder_hidden_size=1024, intermediate_size=3072, num_hidden_layers=12,
    num_attention_heads=12, max_position_embeddings=512, hidden_act="gelu", layer_norm_eps=1e-12, pad_token_id=0,
    is_decoder=True,  # so that it has cross attention; it is called as an encoder
)  # fmt: skip

# What unpickling a file that is damaged, cut off or no checkpoint at all can raise.
_UNREADABLE = (
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    struct.error,
    SafetensorError,
)


def read_original(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU, in the file's dtypes: torch's formats or safetensors, whatever its suffix.

    Looks into ``state_dict`` where there is one. Raises MarbleError where the file is missing, damaged, or holds anything
    but named tensors, objects of other classes above all.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(9)
        # A safetensors file begins with the length of its JSON header, eight bytes, and a torch file with neither.
        found = (
            load_file(path)
            if head[8:] == b"{" and head[:2] != b"PK"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except OSError as error:
        raise MarbleError(f"The checkpoint {path} cannot be read: {error.strerror or error}.") from None
    except _UNREADABLE as error:
        raise MarbleError(
            f"The checkpoint {path} is damaged, cut off, or holds more than tensors ({type(error).__name__}): "
            "fetch it again, and compare its size with the published one."
        ) from None
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise MarbleError(f"The checkpoint {path} holds no named tensors: it is not the file of a model's weights.")
    return dict(found)


def require_exact(tensors: Mapping[str, Tensor], module: nn.Module, path: str | Path, what: str) -> None:
    """Raise MarbleError unless the tensors are the module's own, all of them, with its shapes and no others.

    The module may lie on the meta device. ``what`` names the checkpoint that was expected.
    """
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in tensors]
    unknown = [name for name in tensors if name not in wanted]
    other = [name for name in wanted if name in tensors and tensors[name].shape != wanted[name].shape]
    faults = []
    if missing:
        faults.append(f"{len(missing)} of {len(wanted)} tensors are missing, such as {missing[0]}")
    if unknown:
        faults.append(f"{len(unknown)} are unknown, such as {unknown[0]}")
    if other:
        shapes = f"{tuple(tensors[other[0]].shape)} for {tuple(wanted[other[0]].shape)}"
        faults.append(f"{len(other)} have another shape, such as {other[0]} with {shapes}")
    if faults:
        raise MarbleError(f"The file {path} is not {what}: {'; '.join(faults)}.")


def load_hpsv2(path: str | Path) -> CLIPModel:
    """HPS_v2.1_compressed.pt (or v2.0, which has the same tensors) as a CLIPModel in fp32."""
    tensors = clip_from_open_clip(read_original(path))
    with torch.device("meta"):
        require_exact(tensors, CLIPModel(HPSV2), path, "an HPSv2 checkpoint")
    return _filled(CLIPModel, HPSV2, tensors)


def load_image_reward(path: str | Path) -> nn.ModuleDict:
    """ImageReward.pt in fp32: ``vision`` (BlipVisionModel), ``text`` (BlipTextModel) and ``head``."""
    tensors = blip_from_image_reward(read_original(path))
    with torch.device("meta"):
        empty = nn.ModuleDict(
            {
                "vision": BlipVisionModel(IMAGE_REWARD_VISION),
                "text": BlipTextModel(IMAGE_REWARD_TEXT, add_pooling_layer=False),
                "head": Head(IMAGE_REWARD_TEXT.hidden_size),
            }
        )
        require_exact(tensors, empty, path, "an ImageReward checkpoint")
    part = {
        name: {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        for name in empty
    }
    head = Head(IMAGE_REWARD_TEXT.hidden_size)
    head.load_state_dict(part["head"])
    return nn.ModuleDict(
        {
            "vision": _filled(BlipVisionModel, IMAGE_REWARD_VISION, part["vision"]),
            "text": _filled(BlipTextModel, IMAGE_REWARD_TEXT, part["text"], add_pooling_layer=False),
            "head": head,
        }
    )


def load_head(path: str | Path, width: int) -> Head:
    """The aesthetic predictor's head in fp32, for image features of that width."""
    tensors, head = read_original(path), Head(width)
    require_exact(tensors, head, path, f"an aesthetic head for a CLIP of {width} features")
    head.load_state_dict(tensors)
    return head.eval().requires_grad_(False)


def _filled(cls: Any, config: Any, tensors: Mapping[str, Tensor], **more: Any) -> Any:
    """The model with these tensors in fp32, without a random initialisation before."""
    with quiet():
        return cls.from_pretrained(None, config=deepcopy(config), state_dict=dict(tensors), dtype=torch.float32, **more)
