"""What the commands share: their options, and the configuration that these make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from marble_core.config.schema import RunConfig

ROOT = Path(".marble")  # data of the embedded services, and a directory for each run

Preset = Annotated[str, typer.Option(help="The preset that the configuration starts from.")]
File = Annotated[Path | None, typer.Option("--config", help="A YAML file laid over the preset.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="One value; may be repeated.")]
MaxGpuHours = Annotated[
    float | None,
    typer.Option(min=0, help="GPU hours that the run may be estimated at, at most; one above is refused. Default: any."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def load(preset: str, file: Path | None, assignments: list[str] | None) -> tuple[RunConfig, list[str]]:
    """The configuration, and the user's file and --set options as one list of overrides, which is what a pipeline carries."""
    import yaml

    from marble_core.config.loading import load_config, read_sections
    from marble_core.estimate import resolve_batch_sizes
    from marble_core.rewards.cards import cards_of

    settings = load_config(preset, file, assignments)
    settings = resolve_batch_sizes(settings, cards_of(settings.measured))
    sections = read_sections(file) if file else {}
    of_file = [f"{name}={yaml.safe_dump(value, default_flow_style=True, width=1_000_000)}" for name, value in sections.items()]
    return settings, of_file + list(assignments or [])


def with_limit(assignments: list[str] | None, max_gpu_hours: float | None) -> list[str] | None:
    """The --set options with that of --max-gpu-hours behind them, so that the run itself knows its limit too."""
    limit = [] if max_gpu_hours is None else [f"hardware.max_gpu_hours={max_gpu_hours!r}"]
    return [*(assignments or ()), *limit] or None


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
