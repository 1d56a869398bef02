"""Commands on the pipeline: run, init, check, compile, ui."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marble_core.cli.options import ROOT, File, MaxGpuHours, Preset, Set, load, with_limit

if TYPE_CHECKING:
    from rich.console import Console

    from marble_core.config.schema import RunConfig
    from marble_kubeflow.pipelines.local import Outcome
    from marble_kubeflow.pipelines.settings import Images, Settings

ROOM = 500_000_000  # bytes; a run of the demo writes some 100 MB


def run(
    preset: Preset = "demo",
    config: File = None,
    set_: Set = None,
    run_id: Annotated[str, typer.Option(help="The name of the run; a run that exists goes on. Default: a new one.")] = "",
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Two steps and a few prompts through every stage; says what the run will take.")
    ] = False,
    max_gpu_hours: MaxGpuHours = None,
    containers: Annotated[bool, typer.Option("--containers", help="Each stage in the image of make images.")] = False,
    registry: Annotated[str, typer.Option(help="Where the images lie, if not on this machine alone.")] = "",
    tag: Annotated[str, typer.Option(help="The images' tag. Default: the version of MARBLE.")] = "",
) -> None:
    """Run the pipeline on this machine: from prompts to a registered model and a report.

    S3 and MLflow are started and ended with it, unless AWS_ENDPOINT_URL and MLFLOW_TRACKING_URI name some.
    """
    from marble_core.cli.extras import ON_THIS_MACHINE, require
    from marble_core.config.stage_files import check_run_id, new_run_id
    from marble_core.estimate import allowed_gpu_hours

    settings, overrides = load(preset, config, with_limit(set_, max_gpu_hours))
    require(("kfp",) if containers else ON_THIS_MACHINE, ["run"])
    images = _images(registry, tag) if containers else None
    check_run_id(name := run_id or new_run_id(rehearse))
    hours = allowed_gpu_hours(settings, {"rehearse": "yes" if rehearse else ""}, on_cluster=False)
    _check_before(settings, containers)
    from rich.console import Console

    from marble_core.services.local import embedded

    console = Console(highlight=False)
    what = f"{settings.train.steps} steps of {settings.balance.method}"
    console.print(f"{f'Rehearsal {name} of' if rehearse else f'Run {name}:'} {what}. Starting the services ...")
    if hours and hours.high:
        console.print(str(hours))
    with embedded(ROOT, settings.storage.bucket, ROOM) as environment:
        os.environ.update(environment)
        from marble_kubeflow.pipelines.local import run as run_pipeline

        outcome = run_pipeline(preset, overrides, name, ROOT / "runs" / name, console, images, rehearse)
    _summary(console, settings, outcome)


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
    signal: Annotated[
        Path | None, typer.Option(help="signal.json of marble bench signal: where images and timesteps are best spent.")
    ] = None,
) -> None:
    """Check a configuration, its prompt files and access to its model, and print what a step will do, take and hold."""
    settings, _ = load(preset, config, set_)
    from marble_core.cli.step_cost import lines
    from marble_core.estimate import check_fits
    from marble_core.rewards.cards import cards_of
    from marble_core.training.data_check import checked_data

    check_fits(settings, cards_of(settings.measured))
    data = None if estimate else checked_data(settings)
    print(f"model        {settings.model.path}, {settings.model.width} x {settings.model.height}, {settings.model.precision}")
    print(f"rewards      {', '.join(settings.reward_names)}; balanced by {settings.balance.method}")
    if data:
        print(
            f"prompts      {len(data.train)} to train on, {len(data.evaluation)} held out; sources {', '.join(settings.data.train)}"
        )
        for warning in data.warnings:
            print(f"warning      {warning}")
    for line in lines(settings):
        print(line)
    if signal:
        from marble_core.estimate.allocation import lines as allocation

        for line in allocation(settings, signal):
            print(line)
    if data is None:
        return
    from marble_core.preflight.answers import lines as answered
    from marble_core.preflight.answers import require
    from marble_core.preflight.servers import ask_named

    answers = ask_named(settings)
    for line in answered(answers):
        print(line)
    require(answers)
    print("The configuration is valid.")


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


def ui() -> None:
    """Show the runs, models and reports in MLflow's web pages, until interrupted."""
    from marble_core.services.local import addresses, embedded
    from marble_core.types import without_secrets

    if url := os.environ.get("MLFLOW_TRACKING_URI"):
        print(f"MLflow answers at {without_secrets(url)}")
    elif "MLFLOW_TRACKING_URI" in (running := addresses(ROOT)):
        print(_where_mlflow_is(running))
    else:
        with embedded(ROOT) as environment:
            print(f"{_where_mlflow_is(environment)}; end with Ctrl-C", flush=True)
            signal.pause()


def _where_mlflow_is(environment: Mapping[str, str]) -> str:
    """Address and login, for this terminal alone: a browser that is started with the password shows it in its command line."""
    user, password = environment["MLFLOW_TRACKING_USERNAME"], environment["MLFLOW_TRACKING_PASSWORD"]
    return f"MLflow answers at {environment['MLFLOW_TRACKING_URI']} (user {user}, password {password})"


def _summary(console: Console, settings: RunConfig, outcome: Outcome) -> None:
    """The table base -> trained, the gate's decision, the registered version, and where the report lies."""

    from rich.table import Table

    from marble_core.config.rehearsal import SCRATCH
    from marble_core.evaluation.gate import REHEARSED
    from marble_core.evaluation.results import Evaluation
    from marble_core.evaluation.statistics import interval

    found = outcome.results
    decision = found["register"]
    if "evaluation" not in found["evaluate"]:
        console.print(" ".join(decision["reasons"]), markup=False)
        return
    if decision["verdict"] == REHEARSED:
        _registered(console, settings.registry.model + SCRATCH, decision)
        console.print(decision["foretold"][0], markup=False)
        return
    evaluation = Evaluation.load(found["evaluate"]["evaluation"])
    table = Table("reward", title="Held-out prompts, same noise for all models; 95 % intervals")
    for heading in (
        "prompts",
        "base",
        "trained",
        "difference",
        "interval",
        "wins",
        *(["over champion"] if evaluation.champion else []),
    ):
        table.add_column(heading, justify="right")
    for name, reward in evaluation.measured.items():
        d = reward.difference
        style = "green" if d.low > 0 else "red" if d.high < 0 else ""
        numbers = (f"{reward.base:.3f}", f"{reward.trained:.3f}", f"{d.mean:+.3f}", f"{d.low:+.3f} .. {d.high:+.3f}")
        over = [interval(evaluation.champion.rewards[name].difference)] if evaluation.champion else []
        table.add_row(name, str(reward.n), *numbers, f"{reward.win_rate:.0%}", *over, style=style)
    console.print(table)
    console.print(f"Mean gain: {interval(evaluation.mean_gain)} base standard deviations")
    for note in evaluation.notes:
        console.print(f"Note: {note}", markup=False)
    passed = decision["promoted"]
    console.print(f"Gate: {'passed' if passed else 'refused'}", style="green" if passed else "red")
    for reason in decision.get("reasons", ()):
        console.print(f"  {reason}", markup=False)
    if decision["version"]:
        _registered(console, settings.registry.model, decision)
    if Path(found["evaluate"]["report"]).is_file():
        _show_pages(Path(found["evaluate"]["evaluation"]).parent, Path(found["evaluate"]["report"]), outcome.directory, console)


def _registered(console: Console, model: str, decision: dict[str, Any]) -> None:
    version = f"version {decision['version']} of {model}"
    console.print(f"Registered: {version} as {decision['alias']} in MLflow (see it: marble ui)")


def _show_pages(evaluated: Path, report: Path, directory: Path, console: Console) -> None:
    """The pages in the run's own directory, and beside them the images that the explorer leads to."""
    import shutil

    from marble_core.config.stage_files import EXPLORER, IMAGES, REPORT

    console.print(f"Report: {shutil.copyfile(report, directory / REPORT)}", soft_wrap=True)
    if (evaluated / EXPLORER).is_file():
        console.print(f"Explorer: {shutil.copyfile(evaluated / EXPLORER, directory / EXPLORER)}", soft_wrap=True)
        if not (directory / IMAGES).exists():
            (directory / IMAGES).symlink_to((evaluated / IMAGES).resolve(), target_is_directory=True)
