"""Every bad input that we could think of: exit code 2, one sentence with the file and the field, nothing half written.

tests/cases holds those that are a command and files; what needs a server, a model or a disk of its own is below.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import one_sentence, run_marble
from paths import TESTS

TABLES = sorted((TESTS / "cases").glob("*.yaml"))

CASES = [  # a name that is a command line is what was typed
    pytest.param({"args": shlex.split(name)[1:], **case} if name.startswith("marble ") else case, id=f"{table.stem}: {name}")
    for table in TABLES
    for name, case in yaml.safe_load(table.read_text(encoding="utf-8")).items()
]


def text_of(value: str | dict[str, Any]) -> str:
    return value if isinstance(value, str) else value.get("before", "") + value["text"] * value.get("times", 1)


def write(path: Path, value: str | dict[str, Any]) -> None:
    encoding = "utf-8" if isinstance(value, str) else value.get("encoding", "utf-8")
    path.write_bytes(text_of(value).encode(encoding))


def command(case: dict[str, Any]) -> list[str]:
    """``args``, or ``check`` with the configuration mine.yaml, with p.* as the training file of a source, and with ``set``."""
    if "args" in case:
        return case["args"]
    files = case.get("files", {})
    options = ["--config", "mine.yaml"] if "mine.yaml" in files else []
    options += ["--set", "data.train_size=30", "--set", "data.evaluation_size=9"]
    prompts = [f"data.train.{case.get('of', 'ocr')}={name}" for name in files if name.startswith("p.")]
    for assignment in [*prompts, *map(text_of, case.get("set", ()))]:
        options += ["--set", assignment]
    return ["check", *options]


@pytest.mark.parametrize("case", CASES)
def test_a_bad_input_is_one_sentence_with_its_place_and_exit_code_2_and_writes_nothing(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("KF_PIPELINES_ENDPOINT", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no kubeconfig of the user's
    for name, value in case.get("files", {}).items():
        write(tmp_path / name, value)
    code = run_marble(*command(case), monkeypatch=monkeypatch)
    said = capsys.readouterr()
    assert code == 2, said.out + said.err
    one_sentence(said.err, *case["says"])
    assert said.out == ""
    assert {path.name for path in tmp_path.iterdir()} == set(case.get("files", {}))


def test_there_are_more_than_sixty_cases() -> None:
    assert len(CASES) > 60
