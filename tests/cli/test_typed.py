"""What was typed and is right succeeds, or is at least read; what only a model hub can refuse is refused before a server starts."""

from __future__ import annotations

import shlex
from pathlib import Path

import mlflow
import pytest
import typer

from commands import one_sentence, run_marble
from marble_core import cli
from marble_core.config.families import FAMILIES
from marble_core.config.imports import import_class
from marble_core.tracking.connection import mlflow_client
from marble_core.types import MarbleError
from stub_hub import StubHub


@pytest.mark.parametrize(
    ("typed", "says", "leaves"),
    [
        ("marble check", "The configuration is valid.", set()),
        ("marble check --set model.family=sd3 --set balance.method=single:ocr", "The configuration is valid.", set()),
        ("marble compile", "pipeline.yaml", {"pipeline.yaml"}),
        ("marble init", "marble check --preset demo --config marble.yaml", {"marble.yaml"}),
        ("marble --version", "marble 0.", set()),
        ("marble -h", "fine-tune a text-to-image model", set()),
    ],
)
def test_what_is_right_ends_with_code_0_and_leaves_no_more_than_it_says(
    typed: str, says: str, leaves: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_marble(*shlex.split(typed)[1:], monkeypatch=monkeypatch) == 0
    said = capsys.readouterr()
    assert says in said.out and said.err == ""
    assert {path.name for path in tmp_path.iterdir()} == leaves


def test_a_file_that_is_there_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [run_marble("init", monkeypatch=monkeypatch) for _ in range(2)] == [0, 2]
    one_sentence(capsys.readouterr().err, "'marble.yaml'", "there already")


@pytest.mark.parametrize("typed", ["marble run", "marble evaluate", "marble evaluate --published --preset demo"])
def test_what_takes_minutes_is_read_to_its_end(typed: str) -> None:
    """It is not run here; test_demo.py runs the first, test_evaluate.py the second."""
    group, (_, *words) = typer.main.get_command(cli.app), shlex.split(typed)
    while hasattr(group, "commands"):
        group = group.commands[words.pop(0)]  # type: ignore[attr-defined]
    assert group.make_context("", words).params


@pytest.mark.parametrize("typed", ["marble check --preset sd35-large", "marble run --preset sd35-medium-paper"])
def test_a_model_that_the_hub_does_not_give_is_one_sentence_and_starts_nothing(
    typed: str,
    hub: StubHub,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (work := tmp_path / "work").mkdir()
    monkeypatch.chdir(work)
    assert run_marble(*shlex.split(typed)[1:], monkeypatch=monkeypatch) == 2
    one_sentence(capsys.readouterr().err, "stabilityai/stable-diffusion-3.5-")
    assert list(work.iterdir()) == []


def test_the_table_of_families_names_each_class_s_own_pipeline() -> None:
    for family in FAMILIES.values():
        assert import_class(family.path, "family").pipeline_class == family.pipeline


def test_an_mlflow_that_nobody_runs_is_one_sentence_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow.set_tracking_uri("http://me:secret@127.0.0.1:1")  # it remembers another test's above the environment's
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(MarbleError) as caught, mlflow_client() as client:
        client.search_experiments()
    one_sentence(str(caught.value), "127.0.0.1:1", "does not answer (Connection refused)", "MLFLOW_TRACKING_URI")
    assert "secret" not in str(caught.value)
