"""What a killed process leaves of its own among temporary files goes at the next start, and nothing else does."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from marble_core.runtime import scratch
from marble_core.runtime.scratch import file_of_this_process, locked, remove_dead, scratch_directory
from waiting import eventually, is_alive

HOLDER = """
import os, signal, sys
from marble_core.runtime.scratch import file_of_this_process, scratch_directory
with scratch_directory() as place:
    (place / "champion.safetensors").write_bytes(b"weights")
    print(place, file_of_this_process(b"roots"), flush=True)
    signal.pause()
"""
EXECUTING = """
import os, sys
from marble_core.runtime.scratch import file_of_this_process
print(file_of_this_process(b"roots"), flush=True)
os.execv(sys.executable, [sys.executable, "-c", "import signal; signal.pause()"])
"""
# Its child ignores SIGTERM, and so lives for the grace after the parent is gone.
PARENT = """
import os, sys
from pathlib import Path
from marble_core.runtime.child_process import ChildProcess
from marble_core.runtime.scratch import locked
place = Path(sys.argv[1])
with locked(place) as lock:
    child = ChildProcess(["/bin/sh", "-c", "trap '' TERM; echo $$ > pid; sleep 600"], None, os.environ, place, (lock,), grace=2)
    child.wait()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The place for temporary files, of this test alone; what lies there counts as old."""
    (place := tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(scratch, "YOUNG", -1.0)
    return place


def started(script, *arguments):
    return subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)


def killed(process):
    process.kill()
    process.wait()
    process.stdout.close()


def test_what_a_killed_process_had_goes_at_the_next_start_and_what_a_living_one_has_stays(temporary):
    dead, living = started(HOLDER), started(HOLDER)
    of_dead, of_living = ([Path(name) for name in process.stdout.readline().split()] for process in (dead, living))
    killed(dead)
    with scratch_directory() as mine:
        assert set(temporary.iterdir()) == {mine, *of_living}
    assert not any(path.exists() for path in of_dead) and (of_living[0] / "champion.safetensors").read_bytes() == b"weights"
    killed(living)
    own = file_of_this_process(b"roots")
    with scratch_directory() as mine:
        assert set(temporary.iterdir()) == {mine, own}


def test_what_is_young_or_of_another_name_or_user_or_a_link_stays(temporary, monkeypatch, tmp_path):
    (tmp_path / "mine").mkdir()
    names = ("marble-datasets", "marble-scratch-", "marble-scratch-of-mine", "marble-roots-abcdefgh", "scratch-abcdefgh")
    for name in names:
        (temporary / name).mkdir()
    (temporary / "marble-scratch-abcdefgh").symlink_to(tmp_path / "mine")
    (temporary / "marble-roots-abcdefgh.pem").symlink_to(tmp_path / "roots.pem")
    (tmp_path / "roots.pem").write_text("roots")
    before = set(temporary.iterdir())
    with scratch_directory() as own:
        assert set(temporary.iterdir()) == {own, *before}
    assert (tmp_path / "mine").exists() and (tmp_path / "roots.pem").exists()
    (dead := temporary / "marble-scratch-12345678").mkdir()
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)  # and so all of it is another user's
    with scratch_directory():
        assert dead.exists()
    monkeypatch.undo()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with scratch_directory():
        assert dead.exists(), "it is new"


def test_a_file_is_held_by_the_program_that_the_process_executes_in_its_place(temporary):
    process = started(EXECUTING)
    path = Path(process.stdout.readline().strip())
    arguments = Path(f"/proc/{process.pid}/cmdline")
    assert eventually(lambda: b"signal.pause" in arguments.read_bytes() and b"execv" not in arguments.read_bytes())
    with scratch_directory():
        assert path.read_bytes() == b"roots"
    killed(process)
    with scratch_directory():
        assert not path.exists()


def test_a_place_is_held_until_the_last_child_of_a_killed_parent_has_ended(tmp_path):
    (place := tmp_path / "place").mkdir()
    parent = started(PARENT, str(place))
    assert eventually(lambda: (place / "pid").exists() and (place / "pid").read_text().strip() != "")
    child = int((place / "pid").read_text())
    killed(parent)
    remove_dead([place])
    assert is_alive(child) and place.exists()
    assert eventually(lambda: remove_dead([place]) or not place.exists()) and not is_alive(child)


def test_of_two_that_remove_one_does_and_what_came_in_its_place_stays(tmp_path, monkeypatch):
    (place := tmp_path / "place").mkdir()
    opened = os.open

    def late(path, flags):
        """Between the look and the removal another has removed it, and a third has made its own."""
        descriptor = opened(path, flags)
        place.rename(tmp_path / "away")
        place.mkdir()
        return descriptor

    monkeypatch.setattr(os, "open", late)
    remove_dead([place])
    monkeypatch.undo()
    assert place.exists()
    with locked(place):
        remove_dead([place, tmp_path / "not-there"])
        assert place.exists()
    remove_dead([place])
    assert not place.exists()
