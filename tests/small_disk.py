"""File systems of a given size, for tests of full disks: a tmpfs where it may be mounted, in a namespace of the user's own where not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from paths import ROOT

INSIDE = "MARBLE_TESTS_IN_NAMESPACE"


@contextmanager
def mounted(disk: Path, size: str) -> Iterator[Path]:
    """A file system of that size (tmpfs' grammar: 64k, 2g) at the new directory ``disk``."""
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def may_mount(directory: Path) -> bool:
    try:
        with mounted(directory / "trial", "64k"):
            return True
    except subprocess.CalledProcessError:
        return False


def run_in_namespace(node: str) -> None:
    """Runs the test in a process that is root of a namespace of its own, where it may mount; fails if it fails, or may not."""
    assert not os.environ.get(INSIDE), "A tmpfs cannot be mounted, in a user namespace neither: run this test as root."
    command = ["unshare", "--map-root-user", "--mount", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", node]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {INSIDE: "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"In a namespace of its own, where a tmpfs may be mounted:\n{done.stdout}{done.stderr}")
