"""Commands on the demo's own models: train them from nothing, score them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from marble_core.cli.options import ROOT, AsJson, print_json
from marble_core.demo.recipe import Recipe

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console
    from rich.progress import TaskID

app = typer.Typer(help="The demo's own models: train them from nothing, score them.", no_args_is_help=True)

Work = typer.Option(file_okay=False, help="Where the state is kept; a second start goes on from it.")


@app.callback()
def quietly() -> None:
    """What transformers has to say of packages that nothing here uses is no news to the user."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="The new directory of the StableDiffusion3Pipeline.")],
    work: Annotated[Path, Work] = ROOT / "pretrain",
    seed: Annotated[int, typer.Option(help="What all randomness is drawn from.")] = Recipe.seed,
    pictures: Annotated[int, typer.Option(min=10, help="How many images to draw and learn from.")] = Recipe.pictures,
    vae_steps: Annotated[int, typer.Option(min=1, help="Steps that train the VAE.")] = Recipe.vae_steps,
    text_to_image_steps: Annotated[
        int, typer.Option(min=1, help="Steps that train the transformer.")
    ] = Recipe.text_to_image_steps,
    decoder_steps: Annotated[
        int, typer.Option(min=1, help="Steps that train the decoder anew, at the end.")
    ] = Recipe.decoder_steps,
) -> None:
    """Train the demo's text-to-image model. When killed and started again, it goes on, and ends with the same weights."""
    from rich.console import Console

    from marble_core.demo.pretrain import pretrain as train

    console = Console(highlight=False)
    with Watch(console) as watch:
        train(out, work, Recipe(seed, pictures, vae_steps, text_to_image_steps, decoder_steps), watch.show)
    console.print(f"The model is in {out}.", markup=False, soft_wrap=True)


class Watch:
    """Draws a training's phases: bars on a terminal, elsewhere a line at each checkpoint."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description:13}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        loss = TextColumn("{task.fields[loss]}")
        self._draws = console.is_terminal
        self._bars = Progress(*columns, loss, console=console, speed_estimate_period=600, disable=not self._draws)
        self._tasks: dict[str, TaskID] = {}
        self._first: dict[str, tuple[float, int]] = {}  # of each phase: when its first step was done, and which that was

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, phase: str, done: int, steps: int, loss: float | None) -> None:
        from marble_core.demo.phase import is_checkpoint

        said = "" if loss is None else f"loss {loss:.4f}"
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(phase, total=steps, completed=done, loss=said)
            self._first[phase] = time.monotonic(), done
        self._bars.update(self._tasks[phase], completed=done, loss=said)
        if not self._draws and is_checkpoint(done, steps):
            print("  ".join(filter(None, [f"{phase} {done}/{steps}", said, self._left(phase, done, steps)])), flush=True)

    def _left(self, phase: str, done: int, steps: int) -> str:
        """The time left, from the pace since the phase's first step in this process."""
        began, first = self._first[phase]
        if done == first:
            return ""
        return f"[{(time.monotonic() - began) / (done - first) * (steps - done) / 60:.1f} min left]"


@app.command()
def score(
    models: Annotated[list[str] | None, typer.Argument(help="Directories, or demo://sd3 (the default).")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Held-out prompts of each source.")] = 96,
    guidance: Annotated[list[float] | None, typer.Option(help="May be repeated; 1 is none. Default: 1 and 3.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 12,
    seed: Annotated[int, typer.Option(help="What prompts and noise are drawn from.")] = 0,
    json_: AsJson = False,
) -> None:
    """How well models write and draw: words read by OCR, shapes by GenEval's rules (partial, strict, strict by tag)."""
    from rich.console import Console

    from marble_core.demo.score import load
    from marble_core.demo.score import score as score_model
    from marble_core.runtime.console_table import print_blocks

    found = {}
    for name in models or ["demo://sd3"]:
        model = load(name)
        for scale in guidance or [1.0, 3.0]:
            found[name, scale] = score_model(model, n, scale, steps, seed).columns()
    if json_:
        return print_json([_as_json(name, scale, columns) for (name, scale), columns in found.items()])
    measured = [f"{heading}\n({len(values)})" for heading, values in next(iter(found.values())).items()]
    rows = [
        (f"{name}, guidance {scale:g}", *(f"{v.mean():.2f} ± {_half(v):.2f}" for v in columns.values()))
        for (name, scale), columns in found.items()
    ]
    title = f"{n} held-out prompts per source, {steps} steps; mean ± half of a 95 % interval"
    print_blocks(Console(highlight=False), ("model", *measured), rows, title)


def _half(values: np.ndarray) -> float:
    """Half of the 95 % interval of a mean."""
    return float(1.96 * values.std() / len(values) ** 0.5)


def _as_json(model: str, guidance: float, columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    scores = {name: {"mean": float(v.mean()), "half": _half(v), "prompts": len(v)} for name, v in columns.items()}
    return {"model": model, "guidance": guidance, "scores": scores}


@app.command("pretrain-rewards")
def pretrain_rewards(out: Annotated[Path, typer.Option(help="The directory of the three models.")]) -> None:
    """Train the demo's reward models (clip, pickscore, aesthetic) on its text-to-image model."""
    from marble_core.demo.pretrain_rewards import pretrain_rewards as train

    train(out)
