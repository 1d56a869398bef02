"""Commands on the demo's own models: train them from nothing, score them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from marble_core.cli.options import ROOT

app = typer.Typer(help="The demo's own models: train them from nothing, score them.", no_args_is_help=True)

Count = typer.Option(min=1)


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="The new directory of the StableDiffusion3Pipeline.")],
    work: Annotated[Path, typer.Option(help="Where the state is kept; a second start goes on from it.")] = ROOT / "pretrain",
    seed: Annotated[int, typer.Option(help="What all randomness is drawn from.")] = 1,
    pictures: Annotated[int, typer.Option(min=10, help="How many to draw and learn from.")] = 24_000,
    vae_steps: Annotated[int, Count] = 1100,
    text_to_image_steps: Annotated[int, Count] = 1100,
    decoder_steps: Annotated[int, Count] = 300,
) -> None:
    """Train the demo's text-to-image model; fewer steps, a worse model."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from marble_core.demo.phase import CHECKPOINTS
    from marble_core.demo.pretrain import Recipe
    from marble_core.demo.pretrain import pretrain as train

    recipe = Recipe(seed, pictures, vae_steps, text_to_image_steps, decoder_steps)
    console = Console(highlight=False)
    columns = (TextColumn("{task.description:13}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tail = TextColumn("loss {task.fields[loss]:.4f}")
    bars, tasks = Progress(*columns, tail, console=console, speed_estimate_period=600, disable=not console.is_terminal), {}

    def show(phase: str, done: int, steps: int, loss: float) -> None:
        if phase not in tasks:
            tasks[phase] = bars.add_task(phase, total=steps, loss=loss)
        bars.update(tasks[phase], completed=done, loss=loss)
        if not console.is_terminal and (done % max(1, steps // CHECKPOINTS) == 0 or done == steps):
            print(f"{phase} {done}/{steps}: loss {loss:.4f}", flush=True)

    with bars:
        train(out, work, recipe, show)
    console.print(f"The model is in {out}.", markup=False, soft_wrap=True)
