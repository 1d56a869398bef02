"""Commands on the runs of a Kubeflow cluster: list, show, cancel, wait."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marble_core.cli.kubeflow import (
    Every,
    Timeout,
    at_cluster,
    cluster_at,
    print_table,
    said,
)
from marble_core.cli.options import CANCELED, FAILED, REFUSED, STILL_RUNNING, AsJson, print_json
from marble_core.runtime.progress_lines import in_minutes

if TYPE_CHECKING:
    from marble_core.tracking.run_facts import RunFacts
    from marble_kubeflow.pipelines.cluster import Cluster
    from marble_kubeflow.pipelines.connection import Target

app = typer.Typer(help="The runs in Kubeflow.", no_args_is_help=True)

RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's name, which is its run id, or its id in Kubeflow.")]


OUTCOMES = ("date", "run", "state", "decision", "gain over base", "version", "GPU hours")
LEAST = ("GPU hours", "date", "version")  # left out of a narrow terminal, in this order
Newest = Annotated[int, typer.Option("-n", min=1, help="How many of the newest.")]


@app.command("list")
@at_cluster
def list_runs(
    target: Target,
    limit: Newest = 20,
    json_: AsJson = False,
) -> None:
    """The newest runs, with their state and GPU hours. A run in progress shows how far it is, or why it waits."""
    runs = cluster_at(target).runs(limit=limit)
    facts, asked = _facts(runs, _end_orphans(runs))
    progress = [None if _has_ended(run) else _progress(run, asked) for run in runs]
    if json_:
        found = zip(runs, progress, strict=True)
        return print_json([said(run) | ({"progress": far} if far else {}) | _cost(facts.get(run.run_id)) for run, far in found])
    hours = [facts[run.run_id].gpu_hours if run.run_id in facts else "" for run in runs]
    costly = any(hours)  # without GPUs there is no such column
    rows = [
        (run.display_name, str(run.state or ""), *_cells(far or {}), *([cost] if costly else []), _created(run))
        for run, far, cost in zip(runs, progress, hours, strict=True)
    ]
    headings = ("run", "state", "stage", "step", "left", "attempt", *(["GPU hours"] if costly else []), "created")
    print_table(headings, rows, ("created", "attempt", "left"))
    for run, far in zip(runs, progress, strict=True):
        if far and far["waits"]:
            typer.echo(f"{run.display_name}: {far['waits']}")


@app.command("show")
@at_cluster
def show(
    target: Target,
    run: RunName,
    json_: AsJson = False,
) -> None:
    """One run: its state, how far it is, its parameters, and what failed or waits."""
    found = cluster_at(target).run(run)
    facts, asked = _facts([found], _end_orphans([found]))
    far, known = _progress(found, asked), facts.get(found.run_id)
    if json_:
        return print_json(said(found) | {"progress": far} | _cost(known))
    typer.echo(_state(found))
    if line := _in_words(far):
        typer.echo(f"  {line}")
    if known and known.gpu_hours:
        typer.echo(f"  GPU hours: {known.gpu_hours} estimated")
    for key, value in ((found.runtime_config and found.runtime_config.parameters) or {}).items():
        typer.echo(f"  {key}={value}")
    if _has_ended(found) and found.state != "SUCCEEDED":
        typer.echo(f"Go on: {_again(found)}")


@app.command("cancel")
@at_cluster
def cancel(
    target: Target,
    run: RunName,
) -> None:
    """Cancel a run, and print the command that resumes it from its newest checkpoint. Kubeflow leaves a stage no time to write another."""
    ended = cluster_at(target).cancel(run)
    typer.echo(f"Run {run} is asked to end. Go on: {_again(ended)}")


@app.command("wait")
@at_cluster
def wait(
    target: Target,
    run: RunName,
    timeout: Timeout = None,
    every: Every = 10,
    json_: AsJson = False,
) -> None:
    """Wait for a run's end. Exit code 0: it succeeded; 1: it failed; 3: it was cancelled; 4: --timeout has passed; 2: an error.

    5: it succeeded, and the gate refused the model. Only MLflow knows that, so MLFLOW_TRACKING_URI must name it. A server that stops
    answering for less than five minutes is waited for.
    """
    wait_for(cluster_at(target), run, timeout, every, json_)


def wait_for(cluster: Cluster, name: str, timeout: float | None, every: float, json_: bool) -> None:
    run = cluster.wait(name, timeout, every, lambda seen: typer.echo(_state(seen), err=json_))
    if json_ and run:
        print_json(said(run))
    if run is None:
        typer.echo(f"Run {name} has not ended within {timeout:g} s; it goes on.", err=True)
        raise typer.Exit(STILL_RUNNING)
    _end_orphans([run])
    if run.state != "SUCCEEDED":
        from marble_kubeflow.pipelines.run_state import state_of

        raise typer.Exit(CANCELED if state_of(run) == "CANCELED" else FAILED)
    if why := _refusal(run):
        typer.echo(f"The gate refused the model of {name}: {why}.", err=True)
        raise typer.Exit(REFUSED)


def _refusal(run: Any) -> str:
    from marble_core.tracking.run_progress import refusal_of
    from marble_core.types import MarbleError

    try:
        return refusal_of(run.run_id)
    except MarbleError:  # which has been said when MLflow was asked before
        return ""


def _again(run: Any) -> str:
    """The whole command that goes on with a run in Kubeflow."""
    given = dict((run.runtime_config and run.runtime_config.parameters) or {})
    name = str(given.pop("run_id", "") or run.display_name)
    params = [f"--param={key}={value}" for key, value in given.items() if value not in (None, "")]
    return shlex.join(["marble", "submit", "--run-id", name, *params])


def print_outcomes(runs: Sequence[Any], json_: bool) -> None:
    """Runs that have ended, one line each, with what MLflow knows of them."""
    from marble_core.tracking.run_facts import RunFacts

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        typer.echo("Set MLFLOW_TRACKING_URI to see decisions, gains and versions too: Kubeflow does not know them.", err=True)
    facts, _ = _facts(runs, _end_orphans(runs))
    known = [facts.get(run.run_id, RunFacts()) for run in runs]
    if json_:
        return print_json([said(run) | asdict(each) for run, each in zip(runs, known, strict=True)])
    rows = [
        (
            _created(run),
            run.display_name,
            _final(run),
            each.decision,
            "" if each.gain is None else f"{each.gain:+.3f}",
            each.version,
            each.gpu_hours,
        )
        for run, each in zip(runs, known, strict=True)
    ]
    print_table(OUTCOMES, rows, LEAST)


def _facts(runs: Sequence[Any], ask_mlflow: bool) -> tuple[Mapping[str, RunFacts], bool]:
    """By the runs' ids in Kubeflow, and whether MLflow may be asked more."""
    from marble_core.tracking.run_facts import run_facts
    from marble_core.types import MarbleError

    try:
        return (run_facts(run.run_id for run in runs) if ask_mlflow else {}), ask_mlflow
    except MarbleError as error:
        typer.echo(f"MLflow was not asked: {error}", err=True)
        return {}, False


def _cost(facts: RunFacts | None) -> dict[str, Any]:
    """Of a run with GPUs."""
    known = {"estimated": facts.gpu_hours_estimated, "spent": facts.gpu_hours_spent} if facts else {}
    return {"gpu_hours": known} if any(value is not None for value in known.values()) else {}


def _final(run: Any) -> str:
    from marble_kubeflow.pipelines.run_state import state_of

    return state_of(run)


def _end_orphans(runs: Sequence[Any]) -> bool:
    """A run that was cancelled or killed could not tell MLflow, so whoever sees its end here does. Whether MLflow may be asked more."""
    from marble_core.tracking.orphans import end_orphans
    from marble_core.types import MarbleError
    from marble_kubeflow.pipelines.run_state import FINAL

    try:
        for name in end_orphans({run.run_id for run in runs if run.state in FINAL}):
            typer.echo(f"Run {name} was RUNNING in MLflow, though it has ended: it is KILLED there now.", err=True)
    except MarbleError as error:
        typer.echo(f"MLflow was not asked: {error}", err=True)
        return False
    return True


def _has_ended(run: Any) -> bool:
    from marble_kubeflow.pipelines.run_state import FINAL

    return run.state in FINAL


def _progress(run: Any, ask_mlflow: bool) -> dict[str, Any]:
    """The stage and why it waits, as Kubeflow says; the training's step, the seconds left, the stage's attempt, as MLflow does."""
    from marble_core.tracking.run_progress import run_progress
    from marble_core.types import MarbleError
    from marble_kubeflow.pipelines.run_state import stage_of, waits

    stage, known = stage_of(run), None
    try:
        known = run_progress(run.run_id, stage) if ask_mlflow else None
    except MarbleError as error:
        typer.echo(f"MLflow was not asked: {error}", err=True)
    return {**(asdict(known) if known else {"stage": stage}), "waits": waits(run)}


def _cells(far: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Stage, step, time left and attempt, each empty where it is not known."""
    step, left = far.get("step"), far.get("seconds_left")
    count = "" if step is None else f"{step}/{far.get('steps') or '?'}"
    return far.get("stage", ""), count, "" if left is None else in_minutes(left), str(far.get("attempt", ""))


def _in_words(far: Mapping[str, Any]) -> str:
    """One line; empty where there is nothing to say beyond the stage."""
    stage, count, left, attempt = _cells(far)
    again = f"attempt {attempt}, since the one before ended: {far['because']}" if far.get("attempt", 1) > 1 else ""
    parts = [f"step {count}" if count else "", f"{left} left" if left else "", again]
    return f"{stage}: {', '.join(filter(None, parts))}" if any(parts) else ""


def _created(run: Any) -> str:
    return run.created_at.strftime("%Y-%m-%d %H:%M") if run.created_at else ""


def _state(run: Any) -> str:
    """A run's state on one line, with the stage that failed or runs."""
    from marble_kubeflow.pipelines.run_state import in_words

    return in_words(run)
