"""Commands that start runs on a Kubeflow cluster: submit, schedule."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marble_core.cli.kubeflow import Every, Timeout, at_cluster, cluster_at, print_table, said
from marble_core.cli.options import AsJson, File, MaxGpuHours, Preset, Set, print_json, with_limit
from marble_core.cli.runs import Newest, print_outcomes, wait_for

if TYPE_CHECKING:
    from marble_kubeflow.pipelines.cluster import Cluster
    from marble_kubeflow.pipelines.connection import Target
    from marble_kubeflow.pipelines.order import Order
    from marble_kubeflow.pipelines.package import Package

Pipeline = Annotated[Path, typer.Argument(metavar="[PACKAGE]", help="The pipeline, as marble compile writes it.")]
Param = Annotated[
    list[str] | None,
    typer.Option("--param", metavar="NAME=VALUE", help="A parameter of the pipeline; an unknown name lists them."),
]
Name = Annotated[str, typer.Argument(help="The schedule's name.")]
Cron = Annotated[
    str,
    typer.Option(
        help="When: '0 3 * * *' is each day at 3:00 of the cluster's clock (UTC, as a rule); six fields have seconds."
    ),
]
Experiment = Annotated[str, typer.Option(envvar="KF_PIPELINES_DEFAULT_EXPERIMENT_NAME", help="The experiment in Kubeflow.")]
Account = Annotated[str, typer.Option(help="The service account of the run's pods. Default: Kubeflow's.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, as JSON; no server is asked.")]

schedule = typer.Typer(help="Recurring runs: one at a time, and none for a time that has passed.", no_args_is_help=True)


@at_cluster
def submit(
    target: Target,
    package: Pipeline = Path("pipeline.yaml"),
    preset: Preset = "",
    config: File = None,
    set_: Set = None,
    param: Param = None,
    run_id: Annotated[str | None, typer.Option(help="The run's name; a run that exists goes on. Default: a new one.")] = None,
    max_gpu_hours: MaxGpuHours = None,
    experiment: Experiment = "marble",
    service_account: Account = "",
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the run's end, as marble runs wait does.")] = False,
    every: Every = 10,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    json_: AsJson = False,
) -> None:
    """Start one run of the pipeline on a cluster. A pipeline file that is there already is not uploaded again."""
    from marble_core.config.pipeline_parameters import is_rehearsal
    from marble_core.config.stage_files import check_run_id, new_run_id
    from marble_kubeflow.pipelines.grammar import check_order
    from marble_kubeflow.pipelines.package import Package

    compiled = Package.read(package)
    given = _given(compiled, preset, config, with_limit(set_, max_gpu_hours), param)
    check_order(experiment, service_account, target.namespace.strip())
    if run_id is None:
        run_id = given.get("run_id") or new_run_id(is_rehearsal(given))
    name = check_run_id(run_id)
    if "run_id" in compiled.parameters.definitions:
        given["run_id"] = name
    order = _order(name, compiled, given, experiment, service_account)
    if dry_run:
        return print_json(order.as_json(target))
    cluster = _asked(target)
    run = cluster.submit(order)
    pages = _pages(target, compiled, run.run_id)
    if not json_ or wait:
        typer.echo(f"Run {name} is submitted; follow it: marble runs wait {name}", err=json_)
        _say_hours(order, err=json_)
        for where, page in pages.items():
            typer.echo(f"{where}: {page}{f' (tag marble.run_id = {name})' if where == 'MLflow' else ''}", err=json_)
    if wait:
        return wait_for(cluster, name, timeout, every, json_)
    if json_:
        hours = compiled.parameters.gpu_hours(order.parameters)
        print_json(said(run) | {"pages": pages} | ({"gpu_hours": asdict(hours)} if hours else {}))


@schedule.command("create")
@at_cluster
def create(
    target: Target,
    name: Name,
    cron: Cron,
    package: Pipeline = Path("pipeline.yaml"),
    preset: Preset = "",
    config: File = None,
    set_: Set = None,
    param: Param = None,
    max_gpu_hours: MaxGpuHours = None,
    paused: Annotated[bool, typer.Option("--paused", help="Create it paused.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a schedule of this name that differs.")] = False,
    experiment: Experiment = "marble",
    service_account: Account = "",
    dry_run: DryRun = False,
    json_: AsJson = False,
) -> None:
    """Create a schedule. One of this name that does the same is left as it is."""
    from marble_kubeflow.pipelines.cron import six_fields
    from marble_kubeflow.pipelines.grammar import check_order
    from marble_kubeflow.pipelines.package import Package

    when, compiled = six_fields(cron), Package.read(package)
    check_order(experiment, service_account, target.namespace.strip())
    given = _given(compiled, preset, config, with_limit(set_, max_gpu_hours), param)
    _no_run_id(given)
    order = _order(name, compiled, given, experiment, service_account, cron=when, enabled=not paused)
    if dry_run:
        return print_json(order.as_json(target))
    there, is_new = _asked(target).create_schedule(order, replace)
    if json_:
        return print_json(said(there))
    typer.echo(f"Schedule {name}: {when}" if is_new else f"Schedule {name} was there already, and is as it should be")
    _say_hours(order)


@schedule.command("runs")
@at_cluster
def schedule_runs(target: Target, name: Name, limit: Newest = 20, json_: AsJson = False) -> None:
    """A schedule's newest runs: when each began, how it ended, the gate's decision, the gain over the base, the version, GPU hours."""
    from marble_kubeflow.pipelines.schedule_runs import runs_of_schedule

    print_outcomes(runs_of_schedule(cluster_at(target), name, limit), json_)


@schedule.command("list")
@at_cluster
def list_schedules(
    target: Target,
    json_: AsJson = False,
) -> None:
    """Every schedule: when it runs, and whether it is paused."""
    found = [said(each) for each in cluster_at(target).schedules()]
    if json_:
        return print_json(found)
    rows = [(each["display_name"], _when(each), "paused" if each.get("status") == "DISABLED" else "on") for each in found]
    print_table(("schedule", "cron (seconds first)", ""), rows)


@schedule.command("update")
@at_cluster
def update(
    target: Target,
    name: Name,
    cron: Cron = "",
    package: Annotated[Path | None, typer.Option(help="Another compiled pipeline. Default: the schedule's own.")] = None,
    param: Param = None,
    service_account: Account = "",
    json_: AsJson = False,
) -> None:
    """Change a schedule. What is not given stays as it is; a paused one stays paused."""
    from marble_kubeflow.pipelines.cron import six_fields
    from marble_kubeflow.pipelines.grammar import check_order
    from marble_kubeflow.pipelines.package import Package

    when, other = six_fields(cron) if cron else None, Package.read(package) if package else None
    _no_run_id(given := _pairs(param))
    check_order("marble", service_account, target.namespace.strip())  # its experiment stays
    new = cluster_at(target).update_schedule(name, when, other, given, service_account or None)
    if json_:
        return print_json(said(new))
    typer.echo(f"Schedule {name}: {_when(said(new))}")


@schedule.command("pause")
@at_cluster
def pause(target: Target, name: Name) -> None:
    """Start no new runs until it is resumed. A run that goes on is not stopped."""
    cluster_at(target).pause_schedule(name, paused=True)
    typer.echo(f"Schedule {name} is paused")


@schedule.command("resume")
@at_cluster
def resume(target: Target, name: Name) -> None:
    """Go on with a schedule that was paused; times that have passed are not made up for."""
    cluster_at(target).pause_schedule(name, paused=False)
    typer.echo(f"Schedule {name} is on")


@schedule.command("delete")
@at_cluster
def delete(
    target: Target,
    name: Name,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
) -> None:
    """Delete a schedule. Its runs, and what they made, stay."""
    cluster = cluster_at(target)
    if dry_run:
        (*_, newest) = cluster.schedule(name)
        return typer.echo(f"Schedule {name} ({_when(said(newest))}) would be deleted; nothing was.")
    cluster.delete_schedule(name)
    typer.echo(f"Schedule {name} is deleted")


def _given(
    package: Package, preset: str, config: Path | None, assignments: list[str] | None, params: list[str] | None
) -> dict[str, str]:
    """The parameters that the user gives. A configuration is checked here too, before anything waits for a GPU."""
    from marble_core.cli.options import load
    from marble_core.types import MarbleError

    given = _pairs(params)
    made = {"preset": preset} if preset else {}
    if config or assignments:
        usual = package.parameters.definitions.get("preset", {}).get("defaultValue", "demo")
        _, overrides = load(preset or given.get("preset", usual), config, assignments)
        made["config"] = json.dumps(overrides)
    for name in made:
        if name in given:
            raise MarbleError(f"The pipeline's parameter {name!r} is given twice: leave out --param {name}=.")
    return given | made


def _say_hours(order: Order, err: bool = False) -> None:
    """What a run is estimated at; nothing of one without GPUs, or whose model's sizes are not known here."""
    if (hours := order.package.parameters.gpu_hours(order.parameters)) and hours.high:
        typer.echo(f"A run: {hours}" if order.cron else str(hours), err=err)


def _pages(target: Target, package: Package, run: str) -> dict[str, str]:
    """Where people see the run, as far as it is known here; it is in MLflow once its first stage has begun."""
    from marble_core.runtime.environment import KUBEFLOW_PAGE, MLFLOW_PAGE
    from marble_core.types import without_secrets

    mlflow = package.pages.get(MLFLOW_PAGE) or os.environ.get("MLFLOW_TRACKING_URI", "")
    found = {
        "Kubeflow": target.run_page(run, package.pages.get(KUBEFLOW_PAGE, "")),
        "MLflow": without_secrets(mlflow) if mlflow.startswith("http") else "",
    }
    return {where: page for where, page in found.items() if page}


def _no_run_id(given: Mapping[str, str]) -> None:
    from marble_core.types import MarbleError

    if given.get("run_id"):
        raise MarbleError("A schedule's runs cannot share one run_id: the second would only go on with the first.")


def _pairs(params: list[str] | None) -> dict[str, str]:
    from marble_core.types import MarbleError

    pairs = {}
    for item in params or ():
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise MarbleError(f"The parameter {item!r} is not of the form NAME=VALUE.")
        pairs[name] = value
    return pairs


def _order(name: str, package: Package, given: dict[str, str], experiment: str, account: str, **schedule: Any) -> Order:
    from marble_kubeflow.pipelines.order import Order

    return Order(name, package, package.parameters.values(given), experiment, account or None, **schedule)


def _asked(target: Target) -> Cluster:
    """Kubeflow, which has been asked for what a run needs of it. Raises MarbleError with the first no."""
    from marble_core.preflight.answers import ask, require
    from marble_kubeflow.pipelines.questions import questions

    cluster = cluster_at(target)
    require([ask(f"Kubeflow: {what}", question) for what, question in questions(cluster)])
    return cluster


def _when(schedule: dict[str, Any]) -> str:
    trigger = schedule.get("trigger", {})
    periodic = trigger.get("periodic_schedule", {}).get("interval_second")
    return trigger.get("cron_schedule", {}).get("cron") or f"each {periodic} s"
