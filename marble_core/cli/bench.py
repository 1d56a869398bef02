"""Measurements of the method itself: what exact balancing costs, and what it sees of the signal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from marble_core.cli.options import ROOT, File, Preset, Set, load
from marble_core.cli.servers import mlflow_of_runs

app = typer.Typer(no_args_is_help=True, help="Measure the method: what exact balancing costs, what a step sees of the signal.")


@app.command()
def costs(
    rounds: Annotated[int, typer.Option(min=0, help="Interleaved repeats of what is measured; 0 counts FLOP only.")] = 5,
) -> None:
    """What exact balancing costs: whole steps, counted on SD3.5-Medium's shape and measured here. JSON: .marble/bench.json."""
    from rich.console import Console

    from marble_core.bench import run as run_bench

    run_bench(ROOT / "bench.json", rounds, Console(highlight=False))


@app.command()
def roofline(
    preset: Preset = "sd35-medium-8gpu",
    config: File = None,
    set_: Set = None,
    gpu: Annotated[
        str, typer.Option(help="The GPU that the phases are timed for: H100, H200, A100, L40S or RTX4090.")
    ] = "H100",
    rewards: Annotated[int, typer.Option(min=0, help="Count for so many rewards. 0: as many as the preset has.")] = 0,
    compare: Annotated[
        bool, typer.Option(help="Also compare exact with plain steps, and with the released training loops.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The JSON file that is written.")] = ROOT / "roofline.json",
) -> None:
    """Count a step's FLOP, bytes and kernels by phase, without a GPU, and the least time that GPUs need for them."""
    from rich.console import Console

    from marble_core.bench.roofline_table import run as run_roofline
    from marble_core.estimate.gpus import GPUS
    from marble_core.types import MarbleError

    if gpu not in GPUS:
        raise MarbleError(f"--gpu {gpu} is not in the table of GPUs: choose {', '.join(GPUS)}.")
    settings, _ = load(preset, config, set_)
    run_roofline(settings, GPUS[gpu], rewards or None, compare, out, Console(highlight=False))


@app.command()
def gpu(
    images: Annotated[int, typer.Option(min=1, help="Images in a micro-batch.")] = 18,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats of each part, after two that do not count.")] = 5,
    out: Annotated[Path, typer.Option(help="The JSON file that is written.")] = ROOT / "gpu.json",
) -> None:
    """Measure time and peak memory of sampling, plain and exact steps (K = 5, 16) on this machine's GPU, beside what was counted.

    The weights are random, of SD3.5-Medium's shape, in bf16 and fp16. It takes under eight minutes; nothing is downloaded.
    """
    from dataclasses import replace

    import torch
    from rich.console import Console

    from marble_core.bench.on_gpu import run as run_on_gpu
    from marble_core.bench.shapes import SD35_MEDIUM
    from marble_core.types import MarbleError

    if not torch.cuda.is_available():
        raise MarbleError(
            "marble bench gpu needs a CUDA GPU, and torch sees none here: marble bench roofline counts without one."
        )
    shape = replace(SD35_MEDIUM, images=images)
    run_on_gpu(shape, "cuda", ("bf16", "fp16"), (5, 16), repeats, out, Console(highlight=False))


@app.command()
def signal(
    preset: Preset = "demo",
    config: File = None,
    set_: Set = None,
    adapter: Annotated[
        str, typer.Option(help="The policy: a directory with a LoRA or a checkpoint, models:/NAME@ALIAS. Default: untrained.")
    ] = "",
    batches: Annotated[int, typer.Option(min=2, help="Independent batches. Errors need 3, the table of meters 5.")] = 10,
    subgroups: Annotated[int, typer.Option(min=1, help="Groups of images per prompt in a batch, a step each.")] = 2,
    draws: Annotated[int, typer.Option(min=1, help="Draws of times and noise for the same images, a step each.")] = 2,
    without: Annotated[
        list[str] | None, typer.Option(metavar="REWARD", help="Also balance all rewards but this one. May be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The bank: a file per batch, and signal.json.")] = ROOT / "signal",
) -> None:
    """Measure how much of a step is signal at a fixed policy, and which balancing rule makes most of it.

    Started again, it goes on where it stopped; with more --batches it adds those that are missing.
    """
    from contextlib import ExitStack

    from rich.console import Console

    from marble_core.bench.signal.batches import Design
    from marble_core.bench.signal.run import run
    from marble_core.runtime.scratch import scratch_directory
    from marble_core.tracking.registry import fetch_adapter

    settings, _ = load(preset, config, set_)
    with ExitStack() as stack:
        place = Path(adapter) if adapter else None
        if adapter.startswith("models:/"):
            stack.enter_context(mlflow_of_runs())
            place = fetch_adapter(adapter, stack.enter_context(scratch_directory()))
        run(settings, batches, Design(subgroups, draws), place, without or (), out, Console(highlight=False))
