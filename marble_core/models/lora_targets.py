"""The layers that a model family wants a LoRA on must be there: peft leaves out what it does not find, as long as it finds any."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch

from marble_core.types import MarbleError


def require_targets(transformer: torch.nn.Module, targets: Sequence[str]) -> None:
    """Raises MarbleError for a suffix that is no linear layer's: that layer would not be trained, and nothing would say so."""
    linear = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            parts = target.count(".") + 1
            near = difflib.get_close_matches(target, {".".join(name.split(".")[-parts:]) for name in linear}, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else "correct it in the model family's class."
            raise MarbleError(
                f"lora_targets has {target!r}, but no linear layer of the transformer has a name that ends so: {hint}"
            )
