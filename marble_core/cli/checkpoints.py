"""Commands on a run's checkpoints: list, verify, prune."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marble_core.cli.options import ROOT

if TYPE_CHECKING:
    from marble_core.checkpoints import CheckpointStore

app = typer.Typer(help="The checkpoints of a run, here and on S3.", no_args_is_help=True)

Run = Annotated[str, typer.Argument(help="The run's id.")]
Bucket = Annotated[str, typer.Option(help="The bucket of the run: storage.bucket.")]
Local = Annotated[Path, typer.Option(help="Where local checkpoints lie: storage.local.")]


@app.command("list")
def list_(run: Run, bucket: Bucket = "marble", local: Local = ROOT / "runs") -> None:
    """Every checkpoint, newest first: where it lies, and which is the latest and which the best by evaluation."""
    from rich.console import Console
    from rich.table import Table

    from marble_core.checkpoints.manifest import step_of

    with _store(run, bucket, local) as store:
        assert store.remote is not None
        here, there = store.complete()
        latest, best = store.remote.latest(), store.remote.best_step()
    table = Table("step", "checkpoint", "here", "on S3", "")
    for name in sorted({*here, *there}, key=lambda name: (step_of(name), name), reverse=True):
        marks = [mark for mark, true in (("latest", name == latest), ("best", step_of(name) == best)) if true]
        table.add_row(str(step_of(name)), name, *("yes" if name in where else "" for where in (here, there)), ", ".join(marks))
    Console(highlight=False).print(table)


@app.command()
def verify(run: Run, bucket: Bucket = "marble", local: Local = ROOT / "runs") -> None:
    """Read every file of every checkpoint, here and on S3, and hold it against its manifest. Exit code 2 if one is broken."""
    from marble_core.types import MarbleError

    with _store(run, bucket, local) as store:
        broken = 0
        for where, problem in store.verify_all():
            print(f"{where}: {problem or 'whole'}", flush=True)
            broken += bool(problem)
    if broken:
        raise MarbleError(
            f"{broken} checkpoints of the run {run} are broken; training skips them, and takes the newest whole one."
        )


@app.command()
def prune(
    run: Run,
    keep_last: Annotated[int, typer.Option(min=1, help="The last n steps' checkpoints stay.")] = 3,
    keep_every: Annotated[int, typer.Option(min=0, help="Each n-th step's checkpoint stays; 0: none.")] = 0,
    bucket: Bucket = "marble",
    local: Local = ROOT / "runs",
) -> None:
    """Remove all but the last, each n-th, the best by evaluation, and the latest. Refused while a process works on the run."""
    with _store(run, bucket, local) as store, store.owned():
        gone = store.prune(keep_last, keep_every)
    for name in gone:
        print(f"Removed {name}")
    print(f"{len(gone)} checkpoints removed.")


@contextmanager
def _store(run: str, bucket: str, local: Path) -> Iterator[CheckpointStore]:
    """Raises MarbleError where the run has no checkpoint at all."""
    from marble_core.checkpoints import CheckpointStore
    from marble_core.config.stage_files import check_run_id
    from marble_core.services.local import reachable_s3
    from marble_core.storage.s3 import S3
    from marble_core.types import MarbleError

    directory = local / check_run_id(run) / "checkpoints"
    own = not (os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3"))
    if own and not directory.exists() and not (ROOT / "s3").exists():  # no server is started to be asked for nothing
        raise MarbleError(
            f"There is no checkpoint of the run {run!r}, for nothing has run in this directory: go to that of your runs."
        )
    with reachable_s3(ROOT, bucket) as environment:
        os.environ.update(environment)
        s3 = S3(bucket)
        s3.require_bucket()
        if not directory.exists() and not any(s3.keys(f"runs/{run}/checkpoints")):
            raise MarbleError(f"There is no checkpoint of the run {run!r}, neither in {directory} nor below {s3.uri('runs')}.")
        yield CheckpointStore(directory, s3, run)
