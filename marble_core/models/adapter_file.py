"""Whether a file is a LoRA of a model: told from its header, before a library reads it and fills what does not fit with noise."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from marble_core.types import MarbleError

_PREFIX = "transformer."


def read_lora_file(path: Path, transformer: torch.nn.Module, rank: int | None = None) -> dict[str, torch.Tensor]:
    """The file's tensors by their names in the transformer. Raises MarbleError unless the file has lora_A (r, in) and lora_B (out, r) for layers of the transformer, with their sizes,
    and for a tensor with a value that is not finite.

    ``rank`` is the r that it must have. The transformer may carry other adapters.
    """
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        said = str(error).split("\n")[0].rstrip(".")
        raise MarbleError(f"The LoRA {path} is damaged or no safetensors file ({said}): let train write it again.") from None
    linear = {n: m for n, m in transformer.named_modules() if isinstance(m, torch.nn.Linear)}
    sizes = {n.removesuffix(".base_layer"): (m.in_features, m.out_features) for n, m in linear.items()}
    if not shapes:
        raise MarbleError(f"The LoRA {path} holds no layers: give the directory that train wrote.")
    for name, shape in shapes.items():
        layer, _, part = name.removeprefix(_PREFIX).rpartition(".lora_")
        size = dict(zip(("A.weight", "B.weight"), sizes.get(layer, ()), strict=False)).get(part)
        if not name.startswith(_PREFIX) or size is None or len(shape) != 2 or size != shape[part == "A.weight"]:
            raise MarbleError(f"The LoRA {path} is another model's: its layer {name} with shape {shape} does not fit the base.")
        if rank is not None and shape[part == "B.weight"] != rank:
            raise MarbleError(f"The LoRA {path} has rank {shape[part == 'B.weight']}, but lora.rank is {rank}: set it so.")
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if bad := int((~tensor.isfinite()).sum()):
            raise MarbleError(
                f"The LoRA {path} is damaged: {bad} of the {tensor.numel()} values of its tensor {name} are not finite; "
                "take an earlier checkpoint, or train it anew."
            )
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
