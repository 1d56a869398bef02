"""What comes from elsewhere into the model cache: which part of it is read, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path, PurePath
from typing import Protocol

from marble_core.types import MarbleError

_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


class Part(StrEnum):
    """What is read of a repository. A single file is all of itself."""

    PIPELINE = "pipeline"  # a diffusers pipeline
    MODEL = "model"  # a transformers model, with its tokenizer and its image processor's numbers
    PROCESSOR = "processor"  # the latter two only
    LORA = "LoRA"  # its safetensors file, and peft's configuration
    FILE = "file"


class Remote(Protocol):
    """Something that comes from elsewhere into the model cache."""

    def cached(self) -> Path | None:
        """Its place in the cache, if it is complete there."""

    def size(self) -> int | None:
        """Bytes, where the server says so. Raises MarbleError where it cannot be asked."""

    def fetch(self) -> Path:
        """Bring it, or what has changed of it, and return its place. Raises MarbleError."""


def refuse_code(uri: str, names: Iterable[str]) -> None:
    """``names`` are the files of a diffusers pipeline, relative to it. Raises MarbleError where it brings code of its own, and where
    weights lie there pickled only, since reading those may run code."""
    paths = sorted(PurePath(name) for name in names)
    if code := [path.as_posix() for path in paths if path.suffix == ".py"]:
        raise MarbleError(
            f"The base model {uri} brings code of its own ({code[0]}), which is not run. Give one of diffusers' own classes, or name "
            "a class for it in model.family, see docs/extending.md."
        )
    suffixes: dict[str, set[str]] = {}
    for path in paths:
        suffixes.setdefault(str(path.parent), set()).add(path.suffix)
    if pickled := [part for part, own in sorted(suffixes.items()) if ".safetensors" not in own and own & _PICKLED]:
        raise MarbleError(
            f"The base model {uri} has the weights of {', '.join(pickled)} pickled only. Such files may run code and are not read: "
            "give a model that is saved as safetensors."
        )
