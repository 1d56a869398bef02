"""Commands on blind votes: votes add."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marble_core.cli.options import ROOT
from marble_core.cli.servers import mlflow_of_runs
from marble_core.runtime.scratch import scratch_directory

if TYPE_CHECKING:
    from marble_core.report.voting import Counted

app = typer.Typer(help="Blind votes of people on a run's images: vote.html beside its report.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def add(
    run: Annotated[str, typer.Argument(help="The run's id, its directory, or MLflow's id of it.")],
    file: Annotated[Path, typer.Argument(metavar="VOTES.JSON", help="The file that vote.html gave the voter.")],
) -> None:
    """Count a voter's file into the run: evaluation, report and decision. Where registry.votes asks for votes, register acts on it.

    The same file may be added again: a vote counts once, and an adding that was killed is completed.

    A run that does not lie below .marble/runs is read from MLflow: the server in MLFLOW_TRACKING_URI, or this directory's.
    """
    from marble_core.report.voting import vote_on_disk
    from marble_core.tracking.finished_runs import evaluation_of

    with ExitStack() as stack:
        if found := evaluation_of(run, ROOT / "runs"):
            here, history = found
            counted = vote_on_disk(file, here, history)
            stages = here.parents[1]
            prepared, adapter = stages / "prepare" / "prepared", stages / "train" / "adapter"
        else:
            scratch = stack.enter_context(scratch_directory())
            counted = _of_mlflow(run, file, scratch, stack)
            here, prepared, adapter = scratch, scratch, scratch
        _say(counted)
        if counted.config.registry.votes is None:
            print("They decide nothing: registry.votes is not set.")
        elif not (prepared / "run.json").is_file():
            print(f"Nothing is registered: the run's other stages do not lie beside {here}.")
        else:
            stack.enter_context(mlflow_of_runs())
            from marble_core.stages import register

            page = stack.enter_context(scratch_directory()) / "page.html"
            print(register(prepared, adapter, here, page).sentence)


def _of_mlflow(run: str, file: Path, scratch: Path, stack: ExitStack) -> Counted:
    from marble_core.report.voting import count_votes
    from marble_core.tracking.connection import mlflow_client
    from marble_core.tracking.voted_run import fetch, give_back

    stack.enter_context(mlflow_of_runs())
    client = stack.enter_context(mlflow_client())
    found = fetch(run, client, scratch)
    counted = count_votes(file, scratch, found.run_id, scratch / "images")
    give_back(found, counted.votes, client, scratch)
    print("The run's evaluation and decision in MLflow have them; report.html and explorer.html there stay as they were.")
    return counted


def _say(counted: Counted) -> None:
    print(counted.sentence)
    print(f"{counted.anew} Now: {counted.decision.summary}. {counted.decision.reasons[0]}".lstrip())
