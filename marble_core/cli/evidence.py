"""Evidence: what exact balancing costs, and what settings do over several seeds."""

from __future__ import annotations

from pathlib import Path
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


def study(
    file: Annotated[Path, typer.Argument(help="The study: preset, set, seeds and arms; docs/studies has examples.")],
    out: Annotated[Path | None, typer.Option(help="Where its runs go. Default: .marble/studies/NAME.")] = None,
) -> None:
    """Train several settings with several seeds and hold them against each other on held-out prompts. Goes on where it was stopped."""
    from rich.console import Console

    from marble_core.study import Study
    from marble_core.study import run as run_study

    run_study(Study.read(file), out or ROOT / "studies" / file.stem, Console(highlight=False))
