"""What ``marble bench roofline`` prints and writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marble_core.bench import targets
from marble_core.bench.costs import REWARDS, Schedule, with_halves
from marble_core.bench.kernels import Work
from marble_core.bench.probe import Probe
from marble_core.bench.roofline import PHASES, Roofline, count, counted, in_seconds, published, shape_of
from marble_core.config.schema import RunConfig
from marble_core.estimate import sizes_of
from marble_core.estimate.gpus import GPUS, Gpu
from marble_core.models.base import DTYPES

if TYPE_CHECKING:
    from rich.console import Console


def run(config: RunConfig, gpu: Gpu, rewards: int | None, compare: bool, output: Path, console: Console) -> None:
    """Count, print, and write ``output`` as JSON. ``compare``: also the released loops' way, and exact over plain by time."""
    found = count(config, rewards)
    _by_phase(found, gpu, console)
    _by_gpu(found, config, console)
    written = as_json(found, config)
    if compare:
        written |= _compared(config, found, gpu, console)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(written, indent=2), encoding="utf-8")
    console.print(f"Written to {output}", soft_wrap=True)


def as_json(found: Roofline, config: RunConfig) -> dict[str, Any]:
    return {
        "micro_batch": found.micro_batch,
        "steps": config.train.steps,
        "phases": {name: _numbers(work) for name, work in found.phases.items()},
        "step": _numbers(found.step),
    }


def _numbers(work: Work) -> dict[str, Any]:
    on = {g.name: {"seconds": work.seconds(g), "floor": work.floor(g)} for g in GPUS.values()}
    return {"flop": work.flop, "bytes": work.bytes, "kernels": work.count, "gpus": on}


def _by_phase(found: Roofline, gpu: Gpu, console: Console) -> None:
    from rich.table import Table

    table = Table(f"{gpu.name}, one process")
    for heading in ("TFLOP", "GB", "kernels", "s", "floor, s", "ratio"):
        table.add_column(heading, justify="right")
    for name, work in (
        *((n, found.phases[n]) for n in PHASES[:-1]),
        ("step", found.step),
        ("evaluation", found.phases["evaluation"]),
    ):
        seconds, floor = work.seconds(gpu), work.floor(gpu)
        ratio = f"{seconds / floor:.2f}" if floor else "-"
        numbers = (
            f"{work.flop / 1e12:.1f}",
            f"{work.bytes / 1e9:.0f}",
            f"{work.count:.0f}",
            f"{seconds:.1f}",
            f"{floor:.1f}",
            ratio,
        )
        table.add_row(name, *numbers, style="bold" if name == "step" else "")
    console.print(table)


def _by_gpu(found: Roofline, config: RunConfig, console: Console) -> None:
    from rich.table import Table

    table = Table(f"{config.train.steps} steps, without scoring")
    for heading in ("s a step", "floor, s", "ratio", "hours"):
        table.add_column(heading, justify="right")
    for gpu in GPUS.values():
        seconds, floor = found.step.seconds(gpu), found.step.floor(gpu)
        hours = seconds * config.train.steps / 3600
        table.add_row(gpu.name, f"{seconds:.1f}", f"{floor:.1f}", f"{seconds / floor:.2f}", f"{hours:.1f}")
    console.print(table)


def _compared(config: RunConfig, found: Roofline, gpu: Gpu, console: Console) -> dict[str, Any]:
    """Whole steps of an image in counted time: exact over plain by K, and ours over the way of the releases."""
    sizes = sizes_of(config.model)
    assert sizes is not None
    shape = shape_of(config, sizes)
    schedule = Schedule(config.loss.kl_fraction, sampling=config.rollout.steps, timesteps=config.loss.timesteps)
    rows = [1, *map(with_halves, REWARDS)]
    parts = Probe(shape, "meta", DTYPES[config.model.precision]).parts(rows, counted)
    ours, theirs = in_seconds(parts, gpu), in_seconds(published(shape), gpu)
    ratios = targets.ratios(ours, schedule)
    over = schedule.plain(ours) / schedule.plain(replace(theirs, rows={}))
    for name, ratio in ratios.items():
        if name.startswith("exact"):
            console.print(f"{name}: {ratio:.3f} of a plain step in counted time")
    console.print(f"a plain step takes {over:.3f} of the time that it takes under autocast with diffusers' norms")
    return {"time_over_plain": ratios, "plain_over_autocast": over, "gpu": gpu.name}
