"""docs/tasks: each command that a page shows ends with the line that stands below it, in an empty folder beside the repository's."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from commands import run_marble
from paths import ROOT

PAGES = sorted((ROOT / "docs/tasks").glob("*.md"))
LINKED = ("docs", "examples")  # what the commands read of the repository


def commands(page: Path, heading: str) -> list[tuple[str, str]]:
    """Each command below a heading, with its expected last line."""
    below = page.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found: list[tuple[str, str]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", below, re.MULTILINE | re.DOTALL):
        for command, *last in (entry.strip().splitlines() for entry in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]):
            found.append((command, *last))  # one line, else the tuple does not unpack
    return found


def ends_with(said: str, line: str) -> bool:
    """Whether the last line is ``line``, in which ... stands for anything."""
    last = said.strip().rpartition("\n")[2].strip()
    return re.fullmatch(".*".join(map(re.escape, line.strip().split("..."))), last) is not None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in LINKED:
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def run_process(words: list[str], folder: Path) -> tuple[int, str]:
    """In the folder, or, for what reads the whole repository, there."""
    words = [sys.executable, "-m", "marble_core.cli", *words[1:]] if words[0] == "marble" else words
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    where = folder if "marble_core.cli" in words or "examples/" in " ".join(words) else ROOT
    within_make = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # by which a make says what it enters and leaves
    environment = {name: value for name, value in os.environ.items() if name not in within_make} | {"PATH": path}
    done = subprocess.run(words, cwd=where, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr if done.returncode else done.stdout  # where libraries' progress is not


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_task_page_shows_at_once_ends_as_it_says(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = commands(page, "At once")
    assert len(shown) >= 3
    for command, line in shown:
        words = shlex.split(command)
        with pytest.MonkeyPatch.context() as patch:
            if words[0].startswith("PYTHONPATH="):
                patch.syspath_prepend(str(folder / words.pop(0).partition("=")[2]))
            if words[0] == "marble":
                code = run_marble(*words[1:], monkeypatch=patch)
                said = "".join(capsys.readouterr())
            else:
                code, said = run_process(words, folder)
        assert ends_with(said, line), f"{command}\n{said}"
        assert code in (0, 2), said
    assert not (folder / ".marble").exists(), "a server was started"


@pytest.mark.deep  # rehearsals, and counting SD3.5's FLOP: some six minutes in sum
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page, "In some minutes")], ids=lambda page: page.stem)
def test_what_a_task_page_shows_in_some_minutes_ends_as_it_says(page: Path, folder: Path) -> None:
    for command, line in commands(page, "In some minutes"):
        code, said = run_process(shlex.split(command), folder)
        assert code == 0 and ends_with(said, line), f"{command}\n{said[-3000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_task_page_says_how_long_each_of_its_halves_took(page: Path) -> None:
    for heading in ("At once", "In some minutes"):
        if shown := commands(page, heading):
            below = page.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
            assert re.search(r"took (half a|\d+|\d+\.\d) (second|minute)s?\b", below), (
                f"{page.stem}: {heading}, {len(shown)} commands"
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_task_page_says_what_was_not_run(page: Path) -> None:
    below = page.read_text(encoding="utf-8").partition("## Not run for this page\n")[2]
    assert len(re.findall("^- ", below, re.MULTILINE)) >= 2


def test_there_is_a_page_for_each_of_five_readers_and_a_wrong_last_line_is_seen() -> None:
    assert [page.stem for page in PAGES] == ["contributor", "ml_engineer", "platform_engineer", "product", "researcher"]
    assert ends_with("one\n  two 3 s\n", "two ... s") and not ends_with("one\ntwo 3 s", "one")
    assert not ends_with("two 3 s and more", "two ... s") and not ends_with("", "two")
