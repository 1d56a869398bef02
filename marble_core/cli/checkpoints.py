"""Commands on a run's checkpoints: list, verify, prune."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marble_core.cli.options import ROOT, AsJson, DryRun, print_json

if TYPE_CHECKING:
    from marble_core.checkpoints import CheckpointStore

app = typer.Typer(help="The checkpoints of a run, here and on S3.", no_args_is_help=True)

Run = Annotated[str, typer.Argument(help="The run's id.")]
Bucket = Annotated[str, typer.Option(help="The bucket of the run: storage.bucket.")]
Local = Annotated[Path, typer.Option(help="Where local checkpoints lie: storage.local.")]


@app.command("list")
def list_(run: Run, bucket: Bucket = "marble", local: Local = ROOT / "runs", json_: AsJson = False) -> None:
    """Every checkpoint, newest first: where it lies, and which is the latest and which the best by evaluation."""
    from marble_core.checkpoints.manifest import step_of

    with _store(run, bucket, local) as store:
        assert store.remote is not None
        here, there = store.complete()
        latest, best = store.remote.latest(), store.remote.best_step()
    names = sorted({*here, *there}, key=lambda name: (step_of(name), name), reverse=True)
    marks = {name: [m for m, true in (("latest", name == latest), ("best", step_of(name) == best)) if true] for name in names}
    if json_:
        rows = [{"checkpoint": n, "step": step_of(n), "here": n in here, "s3": n in there, "marks": marks[n]} for n in names]
        return print_json(rows)
    _print(
        [(str(step_of(n)), n, *("yes" if n in where else "" for where in (here, there)), ", ".join(marks[n])) for n in names]
    )


def _print(rows: Sequence[tuple[str, ...]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "checkpoint", "here", "on S3", "", box=SIMPLE_HEAD, pad_edge=False)
    table.columns[1].no_wrap = True
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


@app.command()
def verify(run: Run, bucket: Bucket = "marble", local: Local = ROOT / "runs", json_: AsJson = False) -> None:
    """Read every file of every checkpoint, here and on S3, and compare it with its manifest. Exit code 2 if one is broken."""
    from marble_core.types import MarbleError

    with _store(run, bucket, local) as store:
        problems = {}
        for where, problem in store.verify_all():
            problems[where] = problem
            if not json_:
                print(f"{where}: {problem or 'whole'}", flush=True)
    if json_:
        print_json([{"place": where, "problem": problem or None} for where, problem in problems.items()])
    broken = sum(map(bool, problems.values()))
    if broken:
        raise MarbleError(
            f"{_count(broken)} of the run {run} cannot be used, being incomplete or changed; training takes the newest whole one."
        )


@app.command()
def prune(
    run: Run,
    keep_last: Annotated[int, typer.Option(min=1, help="The last n steps' checkpoints stay.")] = 3,
    keep_every: Annotated[int, typer.Option(min=0, help="Each n-th step's checkpoint stays; 0: none.")] = 0,
    bucket: Bucket = "marble",
    local: Local = ROOT / "runs",
    dry_run: DryRun = False,
    json_: AsJson = False,
) -> None:
    """Remove checkpoints. The last ones, each n-th, the best by evaluation and the latest stay. Refused while a process works on the run."""
    with _store(run, bucket, local) as store, nullcontext() if dry_run else store.owned():
        gone = _superfluous(store, keep_last, keep_every) if dry_run else store.prune(keep_last, keep_every)
    if json_:
        return print_json({"dry_run": dry_run, "removed": gone})
    for name in gone:
        print(f"{'Would remove' if dry_run else 'Removed'} {name}")
    print(f"{_count(len(gone))} {'would be removed; nothing was' if dry_run else 'removed'}.")


def _count(checkpoints: int) -> str:
    return "1 checkpoint" if checkpoints == 1 else f"{checkpoints} checkpoints"


def _superfluous(store: CheckpointStore, last: int, every: int) -> list[str]:
    """The names that ``prune`` would remove now."""
    from marble_core.checkpoints.retention import superfluous

    assert store.remote is not None
    best, latest = store.remote.best_step(), store.remote.latest()
    in_use = {latest} if latest else set()
    return sorted({name for names in store.complete() for name in superfluous(names, last, every, best, in_use)})


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
