"""Where a LoRA lies, whoever made it: its file in a directory, and its directory from anywhere. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from marble_core.config.stage_files import ADAPTER_FILE
from marble_core.storage.artifacts import Part
from marble_core.storage.uri import find, resolve
from marble_core.types import MarbleError

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_LONGEST_HEADER = 2**26  # bytes


def lora_file(place: Path) -> Path:
    """The safetensors file of a LoRA: ``place`` itself, or the one in the directory ``place``, by the name that diffusers or peft
    gives it, or else the only one. Raises MarbleError where there is none, or more than one."""
    place = Path(place)
    if place.is_file():
        return place
    for name in (ADAPTER_FILE, PEFT_FILE):
        if (place / name).is_file():
            return place / name
    found = sorted(place.glob("*.safetensors")) if place.is_dir() else []
    if len(found) == 1:
        return found[0]
    if found:
        raise MarbleError(f"The directory {place} holds {', '.join(f.name for f in found)}: give one of these files.")
    pickled = "; what is pickled (.bin, .pt) is not read" if place.is_dir() and any(place.glob("*.bin")) else ""
    raise MarbleError(
        f"The adapter directory {place} holds no {ADAPTER_FILE} and no other .safetensors file{pickled}: give the directory "
        "that train wrote, or a LoRA's file."
    )


def fetch_lora(uri: str) -> Path:
    """The file of the LoRA that ``uri`` names, as marble_core.storage.uri reads it, brought to this machine. Raises MarbleError."""
    return lora_file(resolve(uri, Part.LORA))


def require_lora(uri: str, rank: int) -> None:
    """Refuse, without fetching it, a LoRA that is not there or, where it lies on this machine, whose rank is above ``rank``."""
    found = find(uri, Part.LORA)
    if not isinstance(found, Path):
        refuse = getattr(found, "refuse", None)
        if refuse:
            refuse()
        elif not found.cached():
            found.size()
    elif (largest := _largest_rank(file := lora_file(found))) > rank:
        raise MarbleError(f"The LoRA {file} has rank {largest}, above lora.rank = {rank}: set lora.rank={largest}.")


def _largest_rank(file: Path) -> int:
    """By the shapes of lora_A in the file's header. 0 where it has none, which whoever reads the file says better."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(length) if length < _LONGEST_HEADER else b""
    try:
        return max((e["shape"][0] for name, e in json.loads(header).items() if name.endswith(".lora_A.weight")), default=0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return 0
