"""Commands for those who work on MARBLE itself."""

from __future__ import annotations

from typing import Annotated

import typer

from marble_core.cli.options import ROOT


def bench(
    rounds: Annotated[int, typer.Option(min=0, help="Interleaved repeats of what is measured; 0 counts FLOP only.")] = 5,
) -> None:
    """What exact balancing costs: whole steps, counted on SD3.5-Medium's shape and measured here. JSON: .marble/bench.json."""
    from rich.console import Console

    from marble_core.bench import run as run_bench

    run_bench(ROOT / "bench.json", rounds, Console(highlight=False))
