"""Commands on the runs of a Kubeflow cluster: list, show, cancel, wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marble_core.cli.kubeflow import (
    CANCELED,
    FAILED,
    STILL_RUNNING,
    Every,
    Timeout,
    at_cluster,
    cluster_at,
    print_table,
    said,
)
from marble_core.cli.options import AsJson, print_json

if TYPE_CHECKING:
    from marble_kubeflow.pipelines.cluster import Cluster
    from marble_kubeflow.pipelines.connection import Target

app = typer.Typer(help="The runs in Kubeflow.", no_args_is_help=True)

RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's name, which is its run id, or its id in Kubeflow.")]


@app.command("list")
@at_cluster
def list_runs(
    target: Target,
    limit: Annotated[int, typer.Option("-n", min=1, help="How many, of the newest.")] = 20,
    json_: AsJson = False,
) -> None:
    """The newest runs, with their state."""
    runs = cluster_at(target).runs(limit=limit)
    _end_orphans(runs)
    found = [said(run) for run in runs]
    if json_:
        return print_json(found)
    print_table(
        ("run", "state", "created"), [(r["display_name"], r.get("state", ""), r.get("created_at", "")[:19]) for r in found]
    )


@app.command("show")
@at_cluster
def show(
    target: Target,
    run: RunName,
    json_: AsJson = False,
) -> None:
    """One run: its state, its parameters, and what failed."""
    found = cluster_at(target).run(run)
    if json_:
        return print_json(said(found))
    _end_orphans([found])
    typer.echo(_state(found))
    for key, value in ((found.runtime_config and found.runtime_config.parameters) or {}).items():
        typer.echo(f"  {key}={value}")


@app.command("cancel")
@at_cluster
def cancel(
    target: Target,
    run: RunName,
) -> None:
    """End a run. marble submit --run-id goes on from its newest checkpoint: Kubeflow leaves a stage no time to write another."""
    cluster_at(target).cancel(run)
    typer.echo(f"Run {run} is asked to end")


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

    A server that is away for less than five minutes meanwhile is waited for too.
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


def _end_orphans(runs: Sequence[Any]) -> None:
    """A run that was cancelled or killed could not tell MLflow, so whoever sees its end here does."""
    from marble_core.tracking.orphans import end_orphans
    from marble_core.types import MarbleError
    from marble_kubeflow.pipelines.run_state import FINAL

    try:
        for name in end_orphans({run.run_id for run in runs if run.state in FINAL}):
            typer.echo(f"Run {name} was RUNNING in MLflow, though it has ended: it is KILLED there now.", err=True)
    except MarbleError as error:
        typer.echo(f"MLflow was not asked: {error}", err=True)


def _state(run: Any) -> str:
    """A run's state on one line, with the stage that failed or runs."""
    from marble_kubeflow.pipelines.run_state import in_words

    return in_words(run)
