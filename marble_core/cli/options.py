"""What the commands share: their options, and the configuration that these make."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from marble_core.config.schema import RunConfig

ROOT = Path(".marble")  # data of the embedded services, and a directory for each run

Preset = Annotated[str, typer.Option(help="The preset that the configuration starts from.")]
File = Annotated[Path | None, typer.Option("--config", help="A YAML file laid over the preset.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="One value. May be repeated.")]
MaxGpuHours = Annotated[
    float | None,
    typer.Option(min=0, help="Refuse the run where its estimate is above so many GPU hours. Default: no limit."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


# Exit codes beside 0 and 2, each with one meaning in all commands: docs/command_line.md.
FAILED, CANCELED, STILL_RUNNING, REFUSED = 1, 3, 4, 5


def seconds(at_least: float) -> Callable[[Any], float]:
    """What reads an option as seconds: a number of them, or a duration such as 90m."""

    def read(value: Any) -> float:
        from marble_core.config.durations import parse_duration

        try:
            found = parse_duration(value, "s") if isinstance(value, str) else float(value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        if not at_least <= found < float("inf"):
            raise typer.BadParameter(f"it must be at least {at_least:g} s, and is {value}")
        return found

    return read


_loaded: list[str] = []  # the words by which fetch finds the configuration that this command has read


def with_what_to_fetch(sentence: str) -> str:
    """The sentence, in which ``marble fetch`` names the configuration that this command has read."""
    whole = shlex.join(["marble", "fetch", *_loaded])
    return re.sub("marble fetch", lambda _: whole, sentence) if _loaded else sentence


def load(
    preset: str, file: Path | None, assignments: list[str] | None, before: Sequence[str] = ()
) -> tuple[RunConfig, list[str]]:
    """The configuration, and the user's file and --set options as one list of overrides, which is what a pipeline carries.

    ``before`` are overrides that lie below the file.
    """
    import yaml

    from marble_core.config.loading import load_config, read_sections
    from marble_core.estimate import resolve_batch_sizes
    from marble_core.rewards.cards import cards_of

    _loaded[:] = [preset, *(("--config", str(file)) if file else ()), *(w for a in assignments or () for w in ("--set", a))]
    sections = read_sections(file) if file else {}
    of_file = [f"{name}={yaml.safe_dump(value, default_flow_style=True, width=1_000_000)}" for name, value in sections.items()]
    overrides = [*before, *of_file, *(assignments or ())]
    settings = load_config(preset, overrides=overrides) if before else load_config(preset, file, assignments)
    return resolve_batch_sizes(settings, cards_of(settings.measured)), overrides


def print_wrapped(line: str, indent: int = 13) -> None:
    """On a terminal a long line goes on below its own second column, at ``indent``; elsewhere it stays one line."""
    import shutil
    import sys
    import textwrap

    width = shutil.get_terminal_size().columns
    if sys.stdout.isatty() and len(line) > width:
        line = textwrap.fill(line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
    print(line)


def with_limit(assignments: list[str] | None, max_gpu_hours: float | None) -> list[str] | None:
    """The --set options with that of --max-gpu-hours behind them, so that the run itself knows its limit too."""
    limit = [] if max_gpu_hours is None else [f"hardware.max_gpu_hours={max_gpu_hours!r}"]
    return [*(assignments or ()), *limit] or None


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
