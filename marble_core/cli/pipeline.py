"""Commands on the pipeline: run, init, check, compile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marble_core.cli import run_summary
from marble_core.cli.options import (
    REFUSED,
    ROOT,
    AsJson,
    File,
    MaxGpuHours,
    Preset,
    Set,
    load,
    print_json,
    print_wrapped,
    with_limit,
)
from marble_core.cli.run_settings import FILE as SETTINGS
from marble_core.cli.run_settings import RunSettings

if TYPE_CHECKING:
    from marble_core.config.schema import RunConfig
    from marble_core.prompts.dataset import Data
    from marble_kubeflow.pipelines.settings import Images, Settings

ROOM = 500_000_000  # bytes; a run of the demo writes some 100 MB


def run(
    preset: Annotated[
        str | None,
        typer.Option(
            show_default="demo", help="The preset to start from. With it, an existing run's own settings are not read."
        ),
    ] = None,
    config: File = None,
    set_: Set = None,
    run_id: Annotated[
        str | None, typer.Option(help="The run's name. One that exists goes on, with its own settings. Default: a new one.")
    ] = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Two steps and a few prompts through every stage; says what the run will take.")
    ] = False,
    max_gpu_hours: MaxGpuHours = None,
    containers: Annotated[bool, typer.Option("--containers", help="Each stage in the image of make images.")] = False,
    registry: Annotated[str, typer.Option(help="The registry that holds the images. Default: this machine.")] = "",
    tag: Annotated[str, typer.Option(help="The images' tag. Default: the version of MARBLE.")] = "",
    json_: AsJson = False,
) -> None:
    """Run the pipeline on this machine: from prompts to a registered model and a report. Exit code 5: the gate refused the model.

    It starts and ends its own S3 and MLflow, unless AWS_ENDPOINT_URL and MLFLOW_TRACKING_URI name others.
    """
    from marble_core.cli.extras import ON_THIS_MACHINE, require
    from marble_core.config.stage_files import check_run_id, new_run_id
    from marble_core.estimate import allowed_gpu_hours

    own = RunSettings.read(ROOT / "runs" / check_run_id(run_id)) if run_id is not None and preset is None else None
    preset, rehearse = (own.preset, own.rehearse or rehearse) if own else ("demo" if preset is None else preset, rehearse)
    settings, overrides = load(preset, config, with_limit(set_, max_gpu_hours), own.overrides if own else ())
    require(("kfp",) if containers else ON_THIS_MACHINE, ["run"])
    images = _images(registry, tag) if containers else None
    name = new_run_id(rehearse) if run_id is None else check_run_id(run_id)
    hours = allowed_gpu_hours(settings, {"rehearse": "yes" if rehearse else ""}, on_cluster=False)
    _check_before(settings, containers)
    from rich.console import Console

    from marble_core.services.local import embedded

    console = Console(highlight=False, stderr=json_)
    what = f"{settings.train.steps} steps of {settings.balance.method}"
    for line in _reused(name, own):
        console.print(line, markup=False)
    console.print(f"{f'Rehearsal {name} of' if rehearse else f'Run {name}:'} {what}. Starting the services ...")
    if hours and hours.high:
        console.print(str(hours))
    with embedded(ROOT, settings.storage.bucket, ROOM) as environment:
        os.environ.update(environment)
        from marble_kubeflow.pipelines import local

        local.remove_left_by_killed(ROOT / "runs")
        RunSettings(preset, overrides, rehearse).write(ROOT / "runs" / name)
        outcome = local.run(preset, overrides, name, ROOT / "runs" / name, console, images, rehearse)
    run_summary.show(console, settings, outcome)
    if json_:
        print_json(run_summary.as_json(name, outcome))
    if run_summary.is_refused(outcome):
        raise typer.Exit(REFUSED)


def _reused(name: str, own: RunSettings | None) -> Iterator[str]:
    """What is here already and is not made again."""
    if own:
        yield f"The run {name} goes on with its own settings, those of {ROOT / 'runs' / name / SETTINGS}."
    earlier = [place for place in (ROOT / "runs").glob("*") if place.is_dir() and place.name != name]
    if earlier:
        yield f"Reused: the MLflow and S3 of {len(earlier)} earlier runs in {ROOT}. A champion is measured beside base and candidate."


def _check_before(settings: RunConfig, containers: bool) -> None:
    """What prepare would refuse is refused before a server is started and MLflow has a run. What lies on S3 waits for its server, and
    the images have packages that need not be here."""
    from marble_core.training.data_check import checked_data

    if not containers and "s3://" not in settings.to_json():
        checked_data(settings)


def _images(registry: str, tag: str) -> Images:
    """The images to run, all of which are here."""
    from marble_kubeflow.pipelines.containers import find
    from marble_kubeflow.pipelines.settings import read_settings

    images = read_settings(registry=registry, tag=tag).images
    find(images)
    return images


def init(
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path("marble.yaml"),
    preset: Preset = "demo",
    schema: Annotated[bool, typer.Option("--schema", help="Write a JSON Schema of it instead, for editors.")] = False,
) -> None:
    """Write a commented configuration with every setting there is, to change and to give to run, check and study."""
    import json

    from marble_core.config.reference import json_schema
    from marble_core.config.template import starter
    from marble_core.types import MarbleError

    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n" if schema else starter(preset)
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError:
        raise MarbleError(f"The file {str(file)!r} is there already: give another name.") from None
    except OSError as error:
        raise MarbleError(f"The file {str(file)!r} cannot be written: {error.strerror}.") from None
    if schema:
        print(f"{file}: begin a configuration with the line  # yaml-language-server: $schema={file}")
    else:
        print(f"{file}: change it, then marble check --preset {preset} --config {file}")


def check(
    preset: Preset = "demo",
    config: File = None,
    set_: Set = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only what a step costs; looks for no prompts and no model.")
    ] = False,
    json_: AsJson = False,
    signal: Annotated[
        Path | None, typer.Option(help="signal.json of marble bench signal: where images and timesteps are best spent.")
    ] = None,
) -> None:
    """Check a configuration, its prompt files and the access to its model. Print what a step does, its time and its memory."""
    settings, _ = load(preset, config, set_)
    from marble_core.cli.step_cost import lines
    from marble_core.estimate import check_fits
    from marble_core.rewards.cards import cards_of
    from marble_core.training.data_check import checked_data

    check_fits(settings, cards_of(settings.measured))
    data = None if estimate else checked_data(settings)
    if json_:
        return _check_as_json(settings, data)
    print(f"model        {settings.model.path}, {settings.model.width} x {settings.model.height}, {settings.model.precision}")
    print_wrapped(f"rewards      {', '.join(settings.reward_names)}; balanced by {settings.balance.method}")
    if data:
        sources = ", ".join(settings.data.train)
        print_wrapped(f"prompts      {len(data.train)} to train on, {len(data.evaluation)} held out; sources {sources}")
        for warning in data.warnings:
            print_wrapped(f"warning      {warning}")
    for line in lines(settings):
        print_wrapped(line)
    if signal:
        from marble_core.estimate.allocation import lines as allocation

        for line in allocation(settings, signal):
            print(line)
    if data is None:
        return
    from marble_core.preflight.answers import column_of, require
    from marble_core.preflight.answers import lines as answered
    from marble_core.preflight.servers import ask_named

    answers = ask_named(settings)
    for line in answered(answers):
        print_wrapped(line, column_of(answers))
    require(answers)
    print("The configuration is valid.")


def _check_as_json(settings: RunConfig, data: Data | None) -> None:
    """What check says, ready for JSON; without ``data`` no server is asked."""
    from marble_core.cli.step_cost import as_json
    from marble_core.preflight.answers import require
    from marble_core.preflight.servers import ask_named

    found: dict[str, Any] = {"model": settings.model.path, "rewards": settings.reward_names, "method": settings.balance.method}
    if data:
        require(ask_named(settings))
        found |= {"prompts": {"train": len(data.train), "held_out": len(data.evaluation)}, "warnings": data.warnings}
    print_json(found | as_json(settings) | {"valid": True if data else None})


def compile_(
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path("pipeline.yaml"),
    registry: Annotated[str, typer.Option(help="Where the images lie, such as registry.example/team.")] = "",
    tag: Annotated[str, typer.Option(help="The images' tag. Default: the version of MARBLE.")] = "",
    settings: Annotated[Path | None, typer.Option(help="A YAML file on images, pods, secrets; see docs/compile.md.")] = None,
    study: Annotated[Path | None, typer.Option(help="Compile the pipeline of this study instead; see docs/study.md.")] = None,
) -> None:
    """Compile the pipeline to the one file that a cluster takes: upload it in Kubeflow's UI, or give it to marble submit."""
    from marble_core.types import MarbleError
    from marble_kubeflow.pipelines.marble import compile_to
    from marble_kubeflow.pipelines.settings import read_settings

    if output.suffix != ".yaml":
        raise MarbleError(f"The file {str(output)!r} must end with .yaml: give another with --output.")
    own = read_settings(settings, registry=registry, tag=tag)
    try:
        print(_compile_study(study, output, own) if study else compile_to(output, own))
    except OSError as error:
        raise MarbleError(f"The file {str(output)!r} cannot be written: {error.strerror}.") from None


def _compile_study(file: Path, output: Path, settings: Settings) -> Path:
    from marble_core.bench.study import Study
    from marble_core.cli.experiments import study_plan
    from marble_kubeflow.pipelines.study import compile_to

    return compile_to(output, study_plan(Study.read(file), file.stem), settings)
