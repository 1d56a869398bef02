"""Known models, their licences and sizes, and everything that a configuration reads. No torch.

What a reward reads, its card says. "unknown" is written where no licence was seen, which is not a permission.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from marble_core import __version__
from marble_core.config.schema import ModelConfig, RewardConfig, RunConfig
from marble_core.storage.artifacts import Part
from marble_core.storage.uri import DEMO, SCHEMES, find
from marble_core.types import Cards, RewardAsset, RewardCard

UNKNOWN = "unknown"
_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".onnx")


@dataclass(frozen=True)
class Known:
    """What is known of a published checkpoint, in words."""

    licence: str
    size: str
    note: str = ""


KNOWN: dict[str, Known] = {
    "black-forest-labs/FLUX.1-dev": Known("FLUX.1 [dev] Non-Commercial (gated)", "34 GB"),
    "black-forest-labs/FLUX.1-schnell": Known("Apache-2.0", "34 GB"),
    "Qwen/Qwen-Image": Known("Apache-2.0", "58 GB"),
    "stabilityai/stable-diffusion-3.5-medium": Known("Stability AI Community (gated)", "16 GB"),
    "stabilityai/stable-diffusion-3.5-large": Known("Stability AI Community (gated)", "28 GB"),
}
_OURS = Known("this project's", UNKNOWN)


@dataclass(frozen=True)
class Asset:
    """Something to have in place before a run. ``users`` are the rewards that need it, or ``model``."""

    uri: str
    part: Part
    users: tuple[str, ...]
    known: Known
    revision: str | None = None


@dataclass(frozen=True)
class Base:
    """What a trained LoRA belongs to. ``revision`` is the commit of what lies in the model cache, or what the configuration names."""

    name: str
    revision: str | None
    licence: str


def base_of(model: ModelConfig) -> Base:
    """The base model of a run, for its model card. Asks nobody."""
    from marble_core.storage.hub import HubRepository

    place = find(model.path, Part.PIPELINE, model.revision)
    if isinstance(place, HubRepository):
        snapshot = place.cached()
        revision = snapshot.name if snapshot else place.revision
        return Base(place.name, revision, KNOWN.get(place.name, Known(UNKNOWN, UNKNOWN)).licence)
    if model.path.startswith(DEMO):
        return Base(model.path, __version__, _OURS.licence)
    return Base(model.path, model.revision, UNKNOWN)


_FEW_STEPS = re.compile(r"schnell|turbo|lightning|hyper-?sd|lcm|distill|few-?step|\b\d-?step", re.IGNORECASE)


def few_steps(model: ModelConfig) -> str | None:
    """A sentence where the model's name says that it was distilled to a few steps, which the loss does not suit."""
    if _FEW_STEPS.search(model.path.rstrip("/").rpartition("/")[2]):
        return (
            f"{model.path} seems to be distilled to a few steps. The loss is flow matching's over all times, under which such models "
            "grow blurred: train the model that it was distilled from."
        )
    return None


def needs(reward: RewardConfig, card: RewardCard) -> dict[str, RewardAsset]:
    """What a reward reads, by uri: its options that are written as URIs, at any depth, and what its card says."""
    return {uri: RewardAsset(uri) for uri in _uris(reward.options)} | {a.uri: a for a in card.assets(reward.options)}


def assets_of(config: RunConfig, cards: Cards) -> list[Asset]:
    """Everything that a run reads, each once, the model first."""
    users: dict[str, list[str]] = {}
    found: dict[str, RewardAsset] = {}
    for reward in config.measured:
        for uri, asset in needs(reward, cards.get(reward.name, RewardCard())).items():
            users.setdefault(uri, []).append(reward.name)
            if uri not in found or asset.part == Part.MODEL:
                found[uri] = asset
    m = config.model
    model = Asset(m.path, Part.PIPELINE, ("model",), _known(m.path, KNOWN.get(m.path)), m.revision)
    return [model, *(Asset(uri, Part(a.part), tuple(users[uri]), _known(uri, _of(a))) for uri, a in found.items())]


def _of(asset: RewardAsset) -> Known:
    return Known(asset.licence, asset.size, asset.note)


def _known(uri: str, found: Known | None) -> Known:
    return _OURS if uri.startswith(DEMO) else found or Known(UNKNOWN, UNKNOWN)


def _uris(value: Any) -> Iterator[str]:
    """Those that can be resolved; of the web's only what has a checkpoint's suffix, for an endpoint is none."""
    if isinstance(value, str) and value.startswith(SCHEMES):
        if not value.startswith("http") or value.endswith(_SUFFIXES):
            yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _uris(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _uris(inner)
