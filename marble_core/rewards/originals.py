"""Reward checkpoints as their authors published them. The only file that reads pickled tensors, with weights_only=True.

Facts and sources of the key names: shared/rewards.md, sections 2b, 2d and 6.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from marble_core.types import MarbleError

# What unpickling a file that is damaged, cut off or no checkpoint at all can raise.
_UNREADABLE = (
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
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
