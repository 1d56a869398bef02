"""Runs against each other: found on the disk and in MLflow alike, held against each other only where that is fair."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from marble_core.cli import app
from marble_core.report import write_comparison
from marble_core.report.compare import differences_in_measuring, headline
from marble_core.tracking.finished_runs import FinishedRun, local_run, tracked_run
from marble_core.tracking.tracker import Tracker, run_params
from marble_core.types import MarbleError
from pages import Page
from report_builders import SETTINGS, a_config, evaluated, lay_out, three_runs, written_comparison


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(written_comparison(tmp_path_factory.mktemp("comparison")))


def test_the_page_says_who_gained_most_and_what_was_set_otherwise(page: Page) -> None:
    text = " ".join(page.text.split())
    assert "Run monday gained most over the base: +0.500 standard deviations (+0.400 to +0.600), clear of wednesday" in text
    assert "balance.method marble weighted_sum equal" in text
    assert "6 (3 skipped)" in text, "a training with skipped steps says so"
    assert len(page.all("img")) == 3 * 6 * 4, "of each source six prompts, drawn by the base and by every run"
    assert {p["alt"].partition(":")[0] for p in page.all("img")} == {"Base", "Monday", "Tuesday", "Wednesday"}
    drawn = [p for p in page.all("svg") if "role" in p]
    assert [p["aria-label"].partition(" ")[0] for p in drawn] == ["Scatter", *["Curves"] * 4]
    assert "Scatter of ocr and geneval" in drawn[0]["aria-label"] and drawn[4]["aria-label"].endswith("one a run: monday.")


def test_who_gained_most_may_be_chance() -> None:
    runs = [FinishedRun(n, {}, evaluated(g), None, Path(), "") for n, g in (("a", 0.1), ("b", 0.2))]  # type: ignore[arg-type]
    assert headline(runs).startswith("Run b gained most") and headline(runs).endswith("so the order may be chance.")


def test_runs_that_were_measured_otherwise_are_not_shown_as_if_they_were_not(tmp_path: Path) -> None:
    first, second, third = three_runs(tmp_path)
    other = replace(second, evaluation=evaluated(settings=SETTINGS | {"prompts_sha256": "2"}))
    write_comparison(tmp_path / "page.html", [first, other])
    page = Page(tmp_path / "page.html")
    assert "not evaluated on the same prompts" in page.text and not page.all("img")
    shifted = {n: replace(r, base=r.base + 0.1) for n, r in third.evaluation.rewards.items()}
    said = differences_in_measuring([first, replace(third, evaluation=replace(third.evaluation, rewards=shifted))], ["ocr"])
    assert said == ["The base of wednesday scores otherwise than that of monday in ocr: it is another model."]


@pytest.mark.services
def test_a_run_in_mlflow_is_the_run_on_the_disk(services: dict[str, str], tmp_path: Path) -> None:
    name = f"run-{uuid.uuid4().hex[:8]}"
    lay_out(tmp_path, name, evaluated(0.3))
    local = local_run(name, tmp_path)
    assert local is not None
    tracker = Tracker.start("compared", name, name, "evaluate", run_params(a_config()))
    for path, directory in (
        (local.images.parent / "evaluation.json", None),
        (local.images.parents[2] / "train" / "adapter" / "history.jsonl", None),
        (local.images, "evaluation"),
    ):
        tracker.log_artifact(path, directory)
    tracker.end()
    client = MlflowClient(services["MLFLOW_TRACKING_URI"])
    for asked in (name, tracker.mlflow_run_id):
        (tmp_path / asked[:3]).mkdir(exist_ok=True)
        found = tracked_run(asked, client, tmp_path / asked[:3])
        assert (found.name, found.params, found.evaluation) == (name, dict(local.params), local.evaluation)
        assert list(found.history.steps) == list(local.history.steps)
        assert {p.name for p in found.images.iterdir()} == {p.name for p in local.images.iterdir()}
    with pytest.raises(MarbleError, match="no run 'nowhere', neither below"):
        tracked_run("nowhere", client, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["monday"], "needs two different runs"),
        (["monday", "killed"], "The run killed has no evaluation"),
        (["monday", "tuesday", "--tradeoff", "ocr"], "must name two rewards"),
        (["monday", "tuesday", "--tradeoff", "ocr:beauty"], "measured in 'beauty'; their common rewards are clipscore, ocr"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    three_runs(Path(".marble/runs"))
    Path(".marble/runs/killed/artifacts").mkdir(parents=True)
    with pytest.raises(MarbleError, match=says):
        CliRunner().invoke(app, ["compare", *arguments], catch_exceptions=False, standalone_mode=False)
    assert not Path("comparison.html").exists()


def test_the_command_writes_the_page_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    three_runs(Path(".marble/runs"))
    command = ["compare", "tuesday", "monday", "--tradeoff", "clipscore:ocr", "--out", "both.html"]
    assert CliRunner().invoke(app, command).stdout == "Comparison: both.html\nExplorer: both-explorer.html\n"
    assert "Scatter of clipscore and ocr" in Page(Path("both.html")).raw
