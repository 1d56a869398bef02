"""A LoRA's file, whoever made it: read into one form, or refused with what is wrong, and written as each reader wants it.

The one form is a ``LowRank`` for each linear layer, whose strength is 1: alpha / r is folded into B. Every reader agrees on it, also
one that looks for alpha in another place than its writer put it, and takes alpha = r.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from marble_core.config.stage_files import ADAPTER_FILE
from marble_core.models.lora_names import TEXT_ENCODERS, Place, names, originals
from marble_core.storage.lora_place import PEFT_CONFIG, PEFT_FILE, lora_file
from marble_core.types import MarbleError

FORMS = ("diffusers", "peft", "comfyui")
_METADATA = "lora_adapter_metadata"  # where diffusers keeps the adapter's configuration in the header
_PART = re.compile(
    r"(?P<layer>.+?)(?:\.lora_(?P<peft>[AB])(?:\.default)?(?:\.weight)?|[._]lora\.(?P<old>down|up)\.weight"
    r"|\.lora_(?:linear_layer\.)?(?P<kohya>down|up)\.weight|\.(?P<alpha>alpha))"
)
_OTHER_KINDS = {
    "dora_scale": "a DoRA", "lora_magnitude_vector": "a DoRA", "hada_w": "a LoHa", "lokr_w": "a LoKr", "lora_mid": "a LoRA of convolutions",
    ".diff": "changes of whole weights", ".bias": "changes of biases", "lora_embedding": "a LoRA of embeddings",
}  # fmt: skip


@dataclass(frozen=True)
class LowRank:
    """What a LoRA adds to the weight of a linear layer: ``B_or @ A_ri``, in float32, its strength included."""

    A_ri: torch.Tensor
    B_or: torch.Tensor

    @property
    def rank(self) -> int:
        return len(self.A_ri)


def read_lora(
    place: Path, transformer: torch.nn.Module, rank: int | None = None, convert: Callable[..., Any] | None = None
) -> dict[str, LowRank]:
    """The LoRA in the file or directory ``place``, by the names of the transformer's linear layers.

    Read are the forms of diffusers, peft, kohya, ComfyUI, OneTrainer and SimpleTuner, each layer with a rank and an alpha of its
    own. ``convert`` is diffusers' converter of the family's other forms, where it has one. ``rank`` is what all layers must have.
    Raises MarbleError for a LoRA of another model, for one that is damaged or not finite, and for other kinds of adapters. The
    transformer may carry adapters.
    """
    path = lora_file(place)
    found, said = _opened(path)
    sizes = _linear_sizes(transformer)
    known = names(sizes, sd3=type(transformer).__name__ == "SD3Transformer2DModel")
    parts = _parts(path, found)
    if convert and not parts.keys() <= known.keys():
        parts = _parts(path, _converted(path, found, convert))
    layers: dict[str, LowRank] = {}
    for name, matrices in parts.items():
        where = known.get(name)
        sides = (sizes[where.layers[0]][0], sum(sizes[layer][1] for layer in where.layers)) if where else None
        for part in ("A", "B"):
            shape = tuple(matrices[part].shape) if part in matrices else None
            if shape and (where is None or sides is None or len(shape) != 2 or shape[part == "A"] != sides[part == "B"]):
                raise MarbleError(
                    f"The LoRA {path} is another model's: its layer {name} with shape {shape} does not fit the base."
                )
        assert where is not None
        whole = _strengthened(path, name, matrices, said)
        for layer, one in zip(where.layers, _split(whole, where), strict=True):
            if layer in layers:
                raise MarbleError(f"The LoRA {path} holds the layer {layer} twice: give a file of one form.")
            if rank is not None and one.rank != rank:
                raise MarbleError(f"The LoRA {path} has rank {one.rank}, but lora.rank is {rank}: set it so.")
            layers[layer] = one
    return layers


def read_unplaced(place: Path) -> dict[str, LowRank]:
    """The LoRA in ``place`` without its model, so that no size is checked: only one whose names are those of diffusers or peft.

    Raises MarbleError for other names, and as ``read_lora`` does.
    """
    path = lora_file(place)
    found, said = _opened(path)
    layers = {}
    for name, matrices in _parts(path, found).items():
        layer = next((name.removeprefix(p) for p in ("transformer.", "base_model.model.") if name.startswith(p)), None)
        if layer is None:
            raise MarbleError(
                f"The LoRA {path} names a layer {name}: only names of diffusers or peft are read without a model."
            )
        layers[layer] = _strengthened(path, name, matrices, said)
    return layers


def _opened(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors, all of them finite numbers, and what diffusers or peft say of alpha beside them."""
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        said = str(error).split("\n")[0].rstrip(".")
        raise MarbleError(f"The LoRA {path} is damaged or no safetensors file ({said}): let train write it again.") from None
    if not found:
        raise MarbleError(f"The LoRA {path} holds no layers: give the directory that train wrote.")
    for name, tensor in found.items():
        for mark, kind in _OTHER_KINDS.items():
            if mark in name:
                raise MarbleError(f"The LoRA {path} holds {name}, so it is {kind}: only plain LoRAs of linear layers are read.")
        if name.startswith(TEXT_ENCODERS):
            raise MarbleError(f"The LoRA {path} changes a text encoder too ({name}): export it for the transformer alone.")
        if not tensor.is_floating_point():
            raise MarbleError(f"The LoRA {path} holds {name} as {tensor.dtype}: give one with floating-point weights.")
        if bad := int((~tensor.float().isfinite()).sum()):
            raise MarbleError(
                f"The LoRA {path} is damaged: {bad} of the {tensor.numel()} values of its tensor {name} are not finite; "
                "take an earlier checkpoint, or train it anew."
            )
    config = path.parent / PEFT_CONFIG
    try:
        said = json.loads(header.get(_METADATA, "{}"))
        if path.name == PEFT_FILE and config.is_file():
            said = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MarbleError(f"What the LoRA {path} says of its alpha is no JSON ({error}): save it again.") from None
    return found, {key.removeprefix("transformer."): value for key, value in said.items()}


def _linear_sizes(transformer: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the linear layers, by their names without adapters."""
    linear = {n: m for n, m in transformer.named_modules() if isinstance(m, torch.nn.Linear) and ".lora_" not in n}
    return {n.removesuffix(".base_layer"): (m.in_features, m.out_features) for n, m in linear.items()}


def _parts(path: Path, found: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors by layer, as the file names it, and by A, B, alpha."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in found.items():
        match = _PART.fullmatch(name)
        if match is None:
            shape = tuple(tensor.shape)
            raise MarbleError(f"The LoRA {path} is another model's: its layer {name} with shape {shape} does not fit the base.")
        word = match["peft"] or match["alpha"] or {"down": "A", "up": "B"}[match["old"] or match["kohya"]]
        parts.setdefault(match["layer"], {})[word] = tensor
    return parts


def _converted(path: Path, found: Mapping[str, torch.Tensor], convert: Callable[..., Any]) -> dict[str, torch.Tensor]:
    try:
        return dict(convert(dict(found)))
    except (ValueError, KeyError, IndexError, RuntimeError, AttributeError) as error:
        said = " ".join(str(error).split()).rstrip(".")[:200]
        raise MarbleError(f"The LoRA {path} is another model's: diffusers cannot read it for this family ({said}).") from None


def _strengthened(path: Path, name: str, matrices: Mapping[str, torch.Tensor], said: Mapping[str, Any]) -> LowRank:
    """With the strength in B: the layer's own ``.alpha`` over its rank, else what the configuration beside it says, else 1."""
    if missing := {"A", "B"} - matrices.keys():
        there = "lora_A without lora_B" if missing == {"B"} else "lora_B without lora_A" if missing == {"A"} else "alpha alone"
        raise MarbleError(f"The LoRA {path} is damaged: its layer {name} has {there}; save it again.")
    A_ri, B_or = matrices["A"].float(), matrices["B"].float()
    r = len(A_ri)
    if B_or.shape[1] != r or r == 0 or matrices.get("alpha", A_ri[0, 0]).numel() != 1:
        raise MarbleError(f"The LoRA {path} is damaged: lora_A of {name} has rank {r}, its lora_B {B_or.shape[1]}.")
    if said.get("use_dora"):
        raise MarbleError(f"The LoRA {path} says use_dora, so it is a DoRA: only plain LoRAs of linear layers are read.")
    if "alpha" in matrices:
        return LowRank(A_ri, B_or * (float(matrices["alpha"]) / r))
    layer = name.removeprefix("base_model.model.").removeprefix("transformer.")
    own = [a for key, a in (said.get("alpha_pattern") or {}).items() if re.match(rf"(.*\.)?({key})$", layer)]  # as peft does
    alpha = float([*own, said.get("lora_alpha", r)][0])
    return LowRank(A_ri, B_or * (alpha / (r**0.5 if said.get("use_rslora") else r)))


def _split(whole: LowRank, where: Place) -> list[LowRank]:
    """Of each of the place's layers. q, k and v of one projection share lora_A, or lie in blocks of it, each with a rank of its own."""
    if _swapped(whole, where):
        return [LowRank(whole.A_ri, torch.cat(whole.B_or.chunk(2)[::-1]))]
    count = len(where.layers)
    rows = whole.B_or.chunk(count)
    if count > 1 and whole.rank % count == 0:
        blocks = [row.chunk(count, dim=1) for row in rows]
        if not any(blocks[i][j].any() for i in range(count) for j in range(count) if i != j):
            return [LowRank(A, blocks[i][i].contiguous()) for i, A in enumerate(whole.A_ri.chunk(count))]
    return [LowRank(whole.A_ri, row.contiguous()) for row in rows]


def _swapped(layer: LowRank, where: Place) -> bool:
    """Shift before scale in Stability's code, after it in diffusers' AdaLayerNormContinuous, which has these two alone."""
    return where.modulation and len(layer.B_or) == 2 * layer.A_ri.shape[1]


def peft_config(layers: Mapping[str, LowRank], targets: Iterable[str] = ()) -> LoraConfig:
    """peft's configuration of these layers at strength 1, each with its own rank. ``targets`` are suffixes of all of their names, where
    there are shorter ones."""
    ranks = {name: layer.rank for name, layer in layers.items()}
    r = max(ranks.values())
    others = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != r}
    return LoraConfig(
        r=r, lora_alpha=r, rank_pattern=others, alpha_pattern=dict(others), target_modules=sorted(targets or layers),
        init_lora_weights=False,
    )  # fmt: skip


def write_lora(layers: Mapping[str, LowRank], place: Path, form: str = "diffusers", targets: Iterable[str] = ()) -> Path:
    """Write the layers in one of ``FORMS``; returns the file.

    ``place`` is a directory: for diffusers of its usual file, for peft of its two. For comfyui it may be a file: names of the fused
    projections and ``.alpha`` tensors, as ComfyUI and kohya's programs read them, and as sd-scripts merges q, k and v. Raises
    MarbleError where a layer has no name in that form.
    """
    layers = {n: LowRank(w.A_ri.detach().cpu().contiguous(), w.B_or.detach().cpu().contiguous()) for n, w in layers.items()}
    config = peft_config(layers, targets)
    file = place if place.suffix == ".safetensors" else place / {"peft": PEFT_FILE}.get(form, ADAPTER_FILE)
    file.parent.mkdir(parents=True, exist_ok=True)
    if form == "comfyui":
        save_file(_fused(layers), file, {"format": "pt"})
        return file
    prefix = {"diffusers": "transformer.", "peft": "base_model.model."}[form]
    tensors = {f"{prefix}{n}.lora_{part}.weight": t for n, w in layers.items() for part, t in (("A", w.A_ri), ("B", w.B_or))}
    said = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    if form == "peft":
        save_file(tensors, file, {"format": "pt"})
        (file.parent / PEFT_CONFIG).write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    else:
        metadata = json.dumps({f"transformer.{key}": value for key, value in said.items()}, indent=2, sort_keys=True)
        save_file(tensors, file, {"format": "pt", _METADATA: metadata})
    return file


def fold(place: Path, strength: float, out: Path) -> Path:
    """The LoRA of ``place`` with a strength in its weights, written for diffusers into the directory ``out``, which is returned."""
    layers = {name: LowRank(w.A_ri, w.B_or * strength) for name, w in read_unplaced(place).items()}
    write_lora(layers, out)
    return out


def _fused(layers: Mapping[str, LowRank]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    todo = set(layers)
    for original, where in originals(layers).items():
        todo -= set(where.layers)
        parts = [layers[layer] for layer in where.layers]
        up = torch.block_diag(*(part.B_or for part in parts))
        name = f"lora_unet_{original.replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"] = torch.cat([part.A_ri for part in parts])
        tensors[f"{name}.lora_up.weight"] = torch.cat(up.chunk(2)[::-1]) if _swapped(parts[0], where) else up
        tensors[f"{name}.alpha"] = torch.tensor(float(sum(part.rank for part in parts)))
    if todo:
        raise MarbleError(f"ComfyUI's names are known for SD3's layers alone, and {min(todo)} is none: use --form diffusers.")
    return tensors
