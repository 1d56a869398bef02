"""What exact balancing costs: whole optimizer steps, counted on SD3.5-Medium's shape and measured where two cores can."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from marble_core.bench.targets import Target

MEMORY_AT = 16  # K of the memory measurement: enough rows to stand out from an allocator's noise


def run(output: Path, rounds: int, console: Console) -> None:
    """Count, measure with ``rounds`` interleaved repeats (none: only count), print tables, and write ``output`` as JSON."""
    found = _counted(console)
    if rounds:
        found |= _measured(console, rounds)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found, indent=2), encoding="utf-8")
    console.print(f"Written to {output}", soft_wrap=True)


def _counted(console: Console) -> dict[str, Any]:
    from marble_core.bench import targets
    from marble_core.bench.costs import REWARDS, Schedule, with_halves
    from marble_core.bench.counted import count
    from marble_core.bench.shapes import SD35_MEDIUM

    parts = count(SD35_MEDIUM, [1, *map(with_halves, REWARDS)])
    schedules = {
        "KL on 1/8": Schedule(),
        "KL on all": Schedule(kl_fraction=1),
        "1/8, recompute each pass": Schedule(recompute="each pass"),
        "1/8, one recompute": Schedule(recompute="once"),
    }
    columns = {name: targets.ratios(parts, schedule) for name, schedule in schedules.items()}
    console.print(f"[bold]Counted[/bold]: {SD35_MEDIUM.name}; a velocity is {parts.forward / 1e12:.2f} TFLOP per image")
    _table(console, "whole step / plain weighted-sum step", columns)
    goals = targets.counted(parts)
    _goals(console, goals)
    return {"counted": {"shape": SD35_MEDIUM.name, "flop": asdict(parts), "ratios": columns, "targets": _listed(goals)}}


def _measured(console: Console, rounds: int) -> dict[str, Any]:
    from marble_core.bench import targets
    from marble_core.bench.costs import REWARDS, with_halves, without_halves
    from marble_core.bench.counted import count
    from marble_core.bench.measured import measure, peak_memory, qp
    from marble_core.bench.probe import Probe
    from marble_core.bench.shapes import SD35_MEDIUM_CUT, demo

    rows = [1, *map(with_halves, REWARDS)]
    found: dict[str, Any] = {}
    for name, shape in (("demo", demo()), ("cut", SD35_MEDIUM_CUT)):
        expected = targets.ratios(count(shape, rows), shape.schedule)
        parts = measure(shape, rows, rounds)
        ratios = targets.ratios(parts, shape.schedule)
        goals = targets.measured(ratios, expected)
        console.print(f"[bold]Measured[/bold]: {shape.name}; a velocity takes {parts.forward:.2f} s for {shape.images} images")
        _table(console, f"whole step / plain step, medians of {rounds}", {"measured": ratios, "counted": expected})
        _goals(console, goals)
        found[name] = {"shape": shape.name, "seconds": asdict(parts), "ratios": ratios, "counted": expected}
        found[name]["targets"] = _listed(goals)
    goals = [targets.Target(f"QP, K = {K}, ms", qp(K), limit) for K, limit in targets.QP_MS.items()]
    peaks = {rows: peak_memory(rows) for rows in (0, without_halves(MEMORY_AT), with_halves(MEMORY_AT))}
    listed = ", ".join(f"{f'{rows} rows' if rows else 'plain'} {peak / 1e6:.0f} MB" for rows, peak in peaks.items())
    console.print(f"Peak memory of the cut shape: {listed}")
    goals += targets.memory(peaks, 4 * Probe(SD35_MEDIUM_CUT, "meta").lora_size)
    _goals(console, goals)
    return {"measured": found | {"rounds": rounds, "peak_bytes": peaks, "qp_and_memory": _listed(goals)}}


def _table(console: Console, title: str, columns: Mapping[str, Mapping[str, float]]) -> None:
    from marble_core.runtime.console_table import print_blocks

    names = next(iter(columns.values()))
    rows = [(name, *(f"{column[name]:.3f}" if name in column else "-" for column in columns.values())) for name in names]
    print_blocks(console, ("", *columns), rows, title)


def _goals(console: Console, goals: Sequence[Target]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("target", no_wrap=True)
    for heading in ("at most", "found", ""):
        table.add_column(heading, justify="right")
    for goal in goals:
        verdict = "reached" if goal.reached else "missed"
        table.add_row(goal.name, f"{goal.limit:g}", f"{goal.value:.4f}", verdict, style="" if goal.reached else "red")
    console.print(table)


def _listed(goals: Sequence[Target]) -> list[dict[str, Any]]:
    return [asdict(goal) | {"reached": goal.reached} for goal in goals]
