"""Evidence: what settings do over several seeds, and runs against each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marble_core.cli.options import ROOT
from marble_core.cli.servers import mlflow_of_runs
from marble_core.runtime.scratch import scratch_directory

if TYPE_CHECKING:
    from rich.console import Console

    from marble_core.bench.study import Study
    from marble_core.tracking.finished_runs import FinishedRun
    from marble_kubeflow.pipelines.study import Plan


def study(
    file: Annotated[Path, typer.Argument(help="The study: preset, set, seeds, evaluate_at and arms; see docs/study.md.")],
    out: Annotated[Path | None, typer.Option(help="Where its cells go. Default: .marble/studies/NAME.")] = None,
    jobs: Annotated[
        int, typer.Option(min=0, help="Cells at a time. 0: two where there are two cores, one where the runs want a GPU.")
    ] = 0,
    pipeline: Annotated[
        bool, typer.Option("--pipeline", help="Run it as the pipeline that a cluster would run; its cells lie on S3.")
    ] = False,
) -> None:
    """Train several settings with several seeds, and compare them on held-out prompts. Started again, it goes on where it stopped.

    Every cell runs the code of the commit at which the study began. Its page, study.html, is rewritten as cells end.
    """
    from rich.console import Console

    from marble_core.bench.study import run as run_study
    from marble_core.cli.extras import ON_THIS_MACHINE, require

    require(ON_THIS_MACHINE, ["study"])
    own = _run_pipeline if pipeline else run_study
    own(file, out or ROOT / "studies" / file.stem, jobs, Console(highlight=False))


def _run_pipeline(file: Path, out: Path, jobs: int, console: Console) -> None:
    """The same study by kfp.local, on S3: its page and tables are the last stage's, and stand in ``out`` too."""
    import shutil

    from marble_core.bench.study import begun, default_jobs
    from marble_core.services.local import reachable_s3
    from marble_kubeflow.pipelines.local import run_study

    with begun(file, out, console, ["--jobs", str(jobs), "--pipeline"]) as (study, _, environment):
        plan = study_plan(study, file.stem, jobs or default_jobs(study), str(out.resolve()))
        with reachable_s3(ROOT, study.config(*study.cells[0]).storage.bucket) as servers:
            outcome = run_study(plan, out / "pipeline", console, {**environment, **servers, "PYTHONSAFEPATH": "1"})
        found = outcome.results["study_report"]
        for name, made in (("study.html", found["page"]), ("study.json", found["tables"])):
            shutil.copyfile(made, out / name)
        console.print(f"Page: {out / 'study.html'}, and {found['address']}", soft_wrap=True)


def study_plan(study: Study, name: str, at_once: int = 0, directory: str = "") -> Plan:
    """What a pipeline is told of a study. A pod of it gets as many GPUs as the arm that wants most."""
    from marble_core.config.stage_files import check_run_id
    from marble_kubeflow.pipelines.study import Plan

    gpus = max(study.config(arm, study.seeds[0]).hardware.gpus for arm in study.arms)
    return Plan(check_run_id(name), study.model_dump(mode="json"), study.cells, gpus, at_once, directory)


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Run ids, directories of runs, or MLflow's run ids.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("comparison.html"),
    tradeoff: Annotated[
        str, typer.Option(metavar="REWARD:REWARD", help="The rewards of the scatter. Default: the most opposed.")
    ] = "",
) -> None:
    """Compare finished runs on one page: gains, settings that differ, images, curves, two rewards' trade-off.

    Runs that do not lie below .marble/runs are read from MLflow: the server in MLFLOW_TRACKING_URI, or this directory's.
    """
    from marble_core.report import write_comparison
    from marble_core.types import MarbleError

    if len(set(runs)) < 2:
        raise MarbleError("A comparison needs two different runs: marble compare RUN RUN.")
    x, _, y = tradeoff.partition(":")
    if tradeoff and not (x and y):
        raise MarbleError(f"--tradeoff {tradeoff!r} must name two rewards with a colon between them, such as ocr:aesthetic.")
    with scratch_directory() as scratch:
        written = write_comparison(out, _finished(runs, scratch), (x, y) if tradeoff else None)
    for name, page in zip(("Comparison", "Explorer"), written, strict=False):
        typer.echo(f"{name}: {page}")


def _finished(runs: list[str], scratch: Path) -> list[FinishedRun]:
    """From the disk where all are there; else MLflow is asked for those that are not."""
    from marble_core.tracking.connection import mlflow_client
    from marble_core.tracking.finished_runs import local_run, tracked_run

    found = {name: local_run(name, ROOT / "runs") for name in runs}
    missing = [name for name, run in found.items() if run is None]
    if missing:
        with mlflow_of_runs(), mlflow_client() as client:
            for name in missing:
                (scratch / name).mkdir()
                found[name] = tracked_run(name, client, scratch / name)
    return [run for run in found.values() if run]
