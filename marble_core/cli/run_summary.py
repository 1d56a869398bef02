"""What ``marble run`` says when all stages are done: the table, the gate's decision, the pages, and what to try next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from marble_core.config.schema import RunConfig
    from marble_core.evaluation.results import Estimate, Evaluation
    from marble_kubeflow.pipelines.local import Outcome


def is_refused(outcome: Outcome) -> bool:
    """Whether the gate has judged the model and said no; a rehearsal and a run with nothing to train on are not judged."""
    from marble_core.evaluation.gate import NOTHING_NEW, REHEARSED

    decision = outcome.results["register"]
    return not decision["promoted"] and decision["verdict"] not in (NOTHING_NEW, REHEARSED)


def as_json(run_id: str, outcome: Outcome) -> dict[str, Any]:
    """The decision, the registered version, and where the files lie, ready for JSON."""
    decision, evaluated = outcome.results["register"], outcome.results["evaluate"]
    kept = {key: decision.get(key) for key in ("verdict", "promoted", "reasons", "model", "version", "alias", "foretold")}
    files = {"evaluation": evaluated.get("evaluation"), "report": _if_there(outcome.directory / "report.html")}
    return {"run_id": run_id, **kept, **files, "directory": str(outcome.directory)}


def _if_there(file: Path) -> str | None:
    return str(file) if file.is_file() else None


def show(console: Console, settings: RunConfig, outcome: Outcome) -> None:
    """The table base -> trained, the gate's decision, the registered version, and where the report lies."""
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
    _tables(console, evaluation)
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
        _pages(console, Path(found["evaluate"]["evaluation"]).parent, Path(found["evaluate"]["report"]), outcome.directory)
    _ends(console, settings, evaluation, outcome)


def _tables(console: Console, evaluation: Evaluation) -> None:
    """Base and trained model; against the champion in a table of its own, so that both fit into 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = "Held-out prompts, same noise for all models; 95 % intervals"
    table = Table("reward", title=title, box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("prompts", "base", "trained", "difference", "wins"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, reward in evaluation.measured.items():
        said = (f"{reward.base:.3f}", f"{reward.trained:.3f}", _spelled(reward.difference), f"{reward.win_rate:.0%}")
        table.add_row(name, str(reward.n), *said, style=_colour(reward.difference))
    console.print(table)
    if evaluation.champion:
        beside = Table(
            "reward", title=f"Over the champion, version {evaluation.champion_version}", box=SIMPLE_HEAD, pad_edge=False
        )
        beside.add_column("difference", justify="right", no_wrap=True)
        for name in evaluation.measured:
            over = evaluation.champion.rewards[name].difference
            beside.add_row(name, _spelled(over), style=_colour(over))
        console.print(beside)


def _spelled(d: Estimate) -> str:
    return f"{d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f})"


def _colour(d: Estimate) -> str:
    return "green" if d.low > 0 else "red" if d.high < 0 else ""


def _registered(console: Console, model: str, decision: Mapping[str, Any]) -> None:
    version = f"version {decision['version']} of {model}"
    console.print(f"Registered: {version} as {decision['alias']} in MLflow (see it: marble ui)", soft_wrap=True)


def _pages(console: Console, evaluated: Path, report: Path, directory: Path) -> None:
    """The pages in the run's own directory, and beside them the images that the explorer leads to."""
    import shutil

    from marble_core.config.stage_files import EXPLORER, IMAGES, REPORT, VOTE

    console.print(f"Report: {shutil.copyfile(report, directory / REPORT)}", soft_wrap=True)
    if (evaluated / VOTE).is_file():
        shutil.copyfile(evaluated / VOTE, directory / VOTE)  # the report leads to it
    if (evaluated / EXPLORER).is_file():
        console.print(f"Explorer: {shutil.copyfile(evaluated / EXPLORER, directory / EXPLORER)}", soft_wrap=True)
        if not (directory / IMAGES).exists():
            (directory / IMAGES).symlink_to((evaluated / IMAGES).resolve(), target_is_directory=True)


def _ends(console: Console, settings: RunConfig, evaluation: Evaluation, outcome: Outcome) -> None:
    """The report's first sentence, and the commands that go on from here."""
    from marble_core.evaluation.gate import Decision
    from marble_core.report.answers import answers

    said = outcome.results["register"]
    decision = Decision(said["promoted"], said["verdict"], tuple(said["reasons"]))
    console.print(answers(evaluation, decision, (), settings.registry).headline, markup=False, style="bold", soft_wrap=True)
    run = outcome.directory.name
    longer = f"marble run --run-id {run} --set train.steps={settings.train.steps * 2}"
    console.print("Next, each from this directory:")
    for what, command in (
        ("all runs and models in MLflow's pages", "marble ui"),
        ("twice as many steps, from this run's checkpoint", longer),
        ("another run, compared with the champion", "marble run --set seed=1"),
    ):
        console.print(f"  {command}    # {what}", markup=False, soft_wrap=True)
