"""What comes from elsewhere into the model cache: which part of it is read, and what can be asked of it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Protocol


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
