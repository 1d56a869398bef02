"""A study's file, its code, its cells and the words for where it stands."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from marble_core.bench import study_checkout, study_processes
from marble_core.bench.study import Study, cell_path, finished
from marble_core.types import MarbleError
from paths import ROOT
from study_builders import a_cell, a_checkout, git


def test_the_study_in_docs_is_read_seeds_first() -> None:
    study = Study.read(ROOT / "docs" / "studies" / "hackable.yaml")
    arms = ["equal", "marble", "trust 1", "auto", "marble in time"]
    assert study.cells[:6] == [*((arm, 0) for arm in arms), ("equal", 1)] and len(study.cells) == 40
    assert study.evaluated_at("marble") == (20,)


def test_a_study_keeps_its_commit_when_head_moves_on(tmp_path: Path) -> None:
    source, out = a_checkout(tmp_path / "source"), tmp_path / "out"
    out.mkdir()
    commit, code = study_checkout.begun_with(out, source)
    (source / "marble_core" / "__init__.py").write_text("__version__ = '2'\n")
    assert study_checkout.begun_with(out, source) == (commit, code), "a change after the beginning is none of the study's"
    git(source, "commit", "--all", "--quiet", "--message", "go on")
    assert study_checkout.begun_with(out, source) == (commit, code) and git(source, "rev-parse", "HEAD") != commit
    assert "'1'" in (code / "marble_core" / "__init__.py").read_text()


def test_a_checkout_that_is_gone_or_half_made_is_made_again(tmp_path: Path) -> None:
    source, out = a_checkout(tmp_path / "source"), tmp_path / "out"
    out.mkdir()
    found = study_checkout.begun_with(out, source)
    git(source, "worktree", "remove", "--force", str(found[1]))
    assert study_checkout.begun_with(out, source) == found and (found[1] / "marble_core" / "__init__.py").is_file()
    (out / study_checkout.COMMIT).unlink()  # as if killed before it was written
    assert study_checkout.begun_with(out, source) == found


def test_code_that_is_not_committed_begins_no_study_and_a_changed_checkout_goes_on_with_none(tmp_path: Path) -> None:
    source, out = a_checkout(tmp_path / "source"), tmp_path / "out"
    out.mkdir()
    (source / "marble_core" / "new.py").write_text("")
    with pytest.raises(MarbleError, match=r"marble_core/new.py differs from the last commit, .*: commit or stash the change.$"):
        study_checkout.begun_with(out, source)
    (source / "marble_core" / "new.py").unlink()
    _, code = study_checkout.begun_with(out, source)
    (code / "marble_core" / "__init__.py").write_text("__version__ = '3'\n")
    with pytest.raises(MarbleError, match=r"The code in .* is no longer that of the commit"):
        study_checkout.begun_with(out, source)


def test_without_git_a_study_runs_as_installed(tmp_path: Path) -> None:
    (tmp_path / "installed").mkdir()
    assert study_checkout.begun_with(tmp_path, tmp_path / "installed") == ("", tmp_path / "installed")


def test_a_process_of_a_study_imports_its_checkout_wherever_it_is_started(tmp_path: Path) -> None:
    source = a_checkout(tmp_path / "source")
    (tmp_path / "marble_core").mkdir()
    (tmp_path / "marble_core" / "__init__.py").write_text("__version__ = 'of the directory'\n")
    code = "import marble_core; print(marble_core.__version__)"
    environment = study_checkout.environment(source, "c0ffee")
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n" and environment["MARBLE_GIT_COMMIT"] == "c0ffee" and environment["OMP_NUM_THREADS"] == "1"


def test_a_cell_of_other_settings_is_not_taken_for_one_of_the_study(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("set: [train.steps=4]\nseeds: [0]\nevaluate_at: [4, 2]\narms: {a: [], b: [seed=1]}\n")
    study = Study.read(tmp_path / "s.yaml")
    digest = study.config("a", 0).digest
    a_cell("a", 0, 0.1, config=digest).save(cell_path(tmp_path, "a", 0))
    assert list(finished(study, tmp_path)) == [("a", 0)]
    for other in (a_cell("a", 0, 0.1), a_cell("a", 0, 0.1, steps=(4,), config=digest)):
        other.save(cell_path(tmp_path, "a", 0))
        with pytest.raises(MarbleError, match=r"seed-0.json was made with other settings .*\. Put them back, give another"):
            finished(study, tmp_path)


def test_two_processes_do_not_work_on_one_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_processes, "PATIENCE", 0.3)
    with (tmp_path / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(MarbleError, match="is being worked on by another process"), study_processes.owned(tmp_path):
            pass
    with study_processes.owned(tmp_path) as descriptor:
        assert os.fstat(descriptor).st_ino == (tmp_path / ".lock").stat().st_ino


def test_the_time_of_a_cell_is_that_of_all_its_attempts_without_what_lay_between(tmp_path: Path) -> None:
    told = [
        {"time": 100.0, "stage": "study cell", "state": "started"},
        {"time": 130.0, "stage": "train", "done": 1, "total": 2},
        {"time": 9000.0, "stage": "study cell", "state": "started"},
        {"time": 9012.0, "stage": "study cell", "state": "finished"},
    ]
    (tmp_path / "progress.jsonl").write_text("".join(json.dumps(event) + "\n" for event in told) + '{"time": 9')
    assert study_processes.worked(study_processes.events(tmp_path)) == 42.0
