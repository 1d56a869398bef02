"""Sizes of batches chosen from memory, and the refusal of what cannot fit, with the nearest that does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations

from marble_core.config.schema import RunConfig
from marble_core.estimate.memory import GIB, memory_of, share_of
from marble_core.estimate.sizes import Sizes, sizes_of
from marble_core.types import Cards, MarbleError

CHOSEN = (("rollout", "batch_size"), ("loss", "micro_batch"), ("evaluation", "batch_size"))
RESERVE_GIB, RESERVE_SHARE = 1.5, 0.05  # [O] CUDA's own, workspaces and fragmentation; without a GPU the libraries' code

# What a user may change so that a run fits, the least first. 0: as many as fit.
REMEDIES: tuple[tuple[str, str, object], ...] = (
    ("loss", "micro_batch", 0),
    ("rollout", "batch_size", 0),
    ("evaluation", "batch_size", 0),
    ("model", "offload", "encoders"),
    ("model", "offload", "scorers"),
    ("model", "offload", "all"),
    ("model", "vae_tiling", True),
    ("model", "gradient_checkpointing", True),
    ("model", "t5", "cpu"),
    ("model", "precision", "bf16"),
)
MOST_REMEDIES = 5


def resolve_batch_sizes(config: RunConfig, cards: Cards) -> RunConfig:
    """The configuration with a number wherever ``batch_size`` or ``micro_batch`` is 0: as many as fit, evenly divided.

    Raises MarbleError where the model's sizes are not known, and where not even one image fits.
    """
    if all(getattr(getattr(config, section), key) for section, key in CHOSEN):
        return config
    sizes = sizes_of(config.model)
    if sizes is None:
        raise MarbleError(
            f"The sizes of the model {config.model.path!r} are not known on this machine. So rollout.batch_size, loss.micro_batch "
            "and evaluation.batch_size cannot be 0: give numbers, or bring its files here with marble fetch."
        )
    chosen = _chosen(config, sizes, cards)
    if chosen is None:
        raise _refusal(config, sizes, cards)
    return chosen


def check_fits(config: RunConfig, cards: Cards) -> None:
    """Raises MarbleError where the estimated memory exceeds what ``hardware`` states. A model of unknown sizes passes."""
    sizes = sizes_of(config.model)
    if sizes is not None and not _fits(config, sizes, cards):
        raise _refusal(config, sizes, cards)


def capacity(config: RunConfig) -> float:
    """Bytes that a process may use."""
    hardware = config.hardware
    free = (hardware.memory_gib * (1 - RESERVE_SHARE) - RESERVE_GIB) * GIB
    return free if hardware.gpus else free / max(1, config.train.processes)


def _fits(config: RunConfig, sizes: Sizes, cards: Cards) -> bool:
    return memory_of(config, sizes, cards).peak <= capacity(config)


def _with(config: RunConfig, section: str, key: str, value: object) -> RunConfig:
    part = getattr(config, section).model_copy(update={key: value})
    return config.model_copy(update={section: part})


def _chosen(config: RunConfig, sizes: Sizes, cards: Cards) -> RunConfig | None:
    """None where one image is too many."""
    _, images = share_of(config)
    wanted = [(section, key) for section, key in CHOSEN if not getattr(getattr(config, section), key)]
    for section, key in wanted:
        config = _with(config, section, key, 1)
    if not _fits(config, sizes, cards):
        return None
    for section, key in wanted:
        if section == "evaluation":  # it samples as a step does, and trains nothing
            most = _largest(config.rollout.batch_size, partial(_fits_with, config, sizes, cards, section, key))
        else:  # a rollout in four batches or more, so that images of one are read and scored while the next is sampled
            limit = -(-images // 4) if section == "rollout" else images
            most = _largest(limit, partial(_fits_with, config, sizes, cards, section, key))
            most = -(-images // -(-images // most))  # evenly divided
        config = _with(config, section, key, most)
    return config


def _fits_with(config: RunConfig, sizes: Sizes, cards: Cards, section: str, key: str, value: int) -> bool:
    return _fits(_with(config, section, key, value), sizes, cards)


def _largest(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``limit`` that fits, where 1 does and fitting ends once."""
    low, high = 1, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _refusal(config: RunConfig, sizes: Sizes, cards: Cards) -> MarbleError:
    tried = config
    for section, key in CHOSEN:
        if not getattr(getattr(config, section), key):
            tried = _with(tried, section, key, 1)
    memory, hardware = memory_of(tried, sizes, cards), config.hardware
    place = "on a GPU" if hardware.gpus else "in the machine's memory"
    said = (
        f"The {memory.peak_phase} phase needs about {memory.peak / GIB:.1f} GiB {place}, and of the {hardware.memory_gib:g} GiB of "
        f"hardware.memory_gib {max(0.0, capacity(config)) / GIB:.1f} are free for it"
    )
    nearest = next((r for r in _remedies(config) if (c := _applied(config, r)) and _chosen_or_same(c, sizes, cards)), None)
    advice = []
    if nearest:
        advice.append("set " + " and ".join(f"{section}.{key}={_shown(value)}" for section, key, value in nearest))
    if preset := _preset_for(config):
        advice.append(f"start from --preset {preset}")
    if not advice:
        least = memory_of(_applied(tried, REMEDIES[3:]), sizes, cards)
        advice.append(
            f"no setting makes it fit, for {least.peak_phase} needs {least.peak / GIB:.1f} GiB in any case, so take more memory or a "
            "smaller model"
        )
    return MarbleError(f"{said}: {', or '.join(advice)}.")


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _remedies(config: RunConfig) -> Iterator[tuple[tuple[str, str, object], ...]]:
    """Sets of changes, the fewest first; no key twice, and none that is there already."""
    useful = [r for r in REMEDIES if getattr(getattr(config, r[0]), r[1]) != r[2]]
    for count in range(1, MOST_REMEDIES + 1):
        for remedy in combinations(useful, count):
            if len({(section, key) for section, key, _ in remedy}) == count:
                yield remedy


def _applied(config: RunConfig, remedy: tuple[tuple[str, str, object], ...]) -> RunConfig:
    for section, key, value in remedy:
        config = _with(config, section, key, value)
    return config


def _chosen_or_same(config: RunConfig, sizes: Sizes, cards: Cards) -> bool:
    found = _chosen(config, sizes, cards)
    return found is not None and _fits(found, sizes, cards)


def _preset_for(config: RunConfig) -> str | None:
    """The preset for this model that asks for most memory, of those that ask for no more than there is."""
    from marble_core.config.loading import load_config, presets

    found = {name: load_config(name) for name in presets()}
    mine = config.hardware
    suitable = {
        name: preset.hardware
        for name, preset in found.items()
        if preset.model.path == config.model.path
        and bool(preset.hardware.gpus) == bool(mine.gpus)
        and preset.hardware.memory_gib <= mine.memory_gib
        and preset.hardware.gpus <= mine.gpus
    }
    return max(suitable, key=lambda name: (suitable[name].memory_gib, suitable[name].gpus), default=None)
