"""What make asks of the machine before it begins, and that two of its commands do not disturb each other."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from commands import TINY, environment
from marble_core.cli.options import REFUSED
from paths import ROOT
from waiting import eventually


@pytest.mark.parametrize(
    ("torch", "needed"), [("torch==2.13.0", 8000), ("torch --index-url https://example.org/whl/cpu", 4000)]
)
def test_an_environment_that_does_not_fit_on_the_disk_is_one_sentence_and_is_not_begun(
    file_system: Callable[[str], Path], torch: str, needed: int
) -> None:
    disk = file_system("64m")
    for name in ("Makefile", "pyproject.toml", "constraints.hashes.txt"):
        shutil.copy(ROOT / name, disk)
    done = subprocess.run(["make", "demo", f"TORCH={torch}"], cwd=disk, capture_output=True, text=True, check=False)
    sentence, *_ = done.stderr.splitlines()
    assert (
        done.returncode == 2
        and sentence.startswith(f"The disk of {disk} has 6")
        and f"needs {needed} MB: free some space" in sentence
    )
    assert not (disk / ".venv").exists()


@pytest.mark.deep
def test_two_runs_in_two_directories_at_once_have_servers_of_their_own_and_both_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "marble_core.cli", "run", "--run-id", "same"]
    for pair in TINY:
        command += ["--set", pair]
    places = [tmp_path / name for name in ("one", "two")]
    running = []
    for place in places:
        place.mkdir()
        log = (place / "log").open("wb")
        running.append(subprocess.Popen(command, cwd=place, env=environment(), stdout=log, stderr=log))
    seen: set[str] = set()

    def ended() -> bool:
        for place in places:
            with suppress(OSError, ValueError):  # not there yet, half written, or gone again
                seen.update(json.loads((place / ".marble" / "addresses.json").read_text()).values())
        return None not in [process.poll() for process in running]

    assert eventually(ended, 1800)
    assert {process.returncode for process in running} <= {0, REFUSED}, [(place / "log").read_text() for place in places]
    assert len(seen) == 4, "S3 and MLflow of each"
    assert all((place / ".marble" / "runs" / "same" / "report.html").is_file() for place in places)
