"""The code that a study runs from its beginning to its end: a checkout of its own, of the commit that HEAD was when it began.

Where MARBLE is installed and no git checkout, the study runs as installed, and its cells name the version.
"""

from __future__ import annotations

import os
import subprocess
from importlib.resources import files
from pathlib import Path

from marble_core.runtime.environment import GIT_COMMIT
from marble_core.types import MarbleError

COMMIT, CHECKOUT = "commit.txt", "checkout"  # below the study's directory; the first is written when the second is whole
_RUNNING = Path(str(files("marble_core"))).parent.resolve()


def begun_with(out: Path, source: Path = _RUNNING) -> tuple[str, Path]:
    """The study's commit and the directory of its code; at its beginning ``source``'s HEAD and a new worktree below ``out``.

    The commit is empty where ``source`` is no git checkout. Raises MarbleError where the code in ``source`` differs from its HEAD
    at the beginning, where the study's own checkout was changed since, and where git fails.
    """
    record, checkout = out / COMMIT, out / CHECKOUT
    if record.is_file():
        commit = record.read_text(encoding="utf-8").strip()
        if not commit:
            return "", source
        if not checkout.is_dir():
            _add(source, checkout, commit)
        if _git(checkout, "rev-parse", "HEAD") != commit or _changed(checkout):
            raise MarbleError(
                f"The code in {checkout} is no longer that of the commit {commit[:12]}, with which the study was begun. "
                "Remove that directory to have it made again."
            )
        return commit, checkout
    if not (source / ".git").exists():
        record.write_text("\n", encoding="utf-8")
        return "", source
    if changed := _changed(source):
        raise MarbleError(
            f"{source / changed} differs from the last commit, and a study names the commit that it runs from: "
            "commit or stash the change."
        )
    commit = _git(source, "rev-parse", "HEAD")
    _add(source, checkout, commit)
    record.write_text(f"{commit}\n", encoding="utf-8")
    return commit, checkout


def is_running(code: Path) -> bool:
    return code.resolve() == _RUNNING


def environment(code: Path, commit: str) -> dict[str, str]:
    """Of a process (started with -P) that imports MARBLE from ``code``: one thread, for there may be several of them."""
    own = {GIT_COMMIT: commit} if commit else {}
    paths = os.pathsep.join(filter(None, [str(code.resolve()), os.environ.get("PYTHONPATH")]))
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return {**os.environ, **own, **threads, "PYTHONPATH": paths}


def _add(source: Path, checkout: Path, commit: str) -> None:
    """A worktree; what a killed attempt has left of one gives way."""
    if checkout.exists():
        _git(source, "worktree", "remove", "--force", "--force", str(checkout.resolve()))
    _git(source, "worktree", "prune")
    _git(source, "worktree", "add", "--quiet", "--detach", str(checkout.resolve()), commit)


def _changed(checkout: Path) -> str:
    """The first file of the package that is not as it was committed; empty where there is none."""
    found = _git(checkout, "status", "--porcelain", "--", "marble_core")
    return found.splitlines()[0][3:].strip('"') if found else ""


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except OSError as error:
        raise MarbleError(
            f"git cannot be started ({error.strerror}), and a study from a checkout needs it: install it."
        ) from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise MarbleError(f"The study's code cannot be had: 'git {arguments[0]}' in {directory} failed: {said.rstrip('.')}.")
    return done.stdout.rstrip("\n")
