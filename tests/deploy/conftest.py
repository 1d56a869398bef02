"""What the chart gives a train stage, before a stub of Kubernetes; and programs of the operating system that tests run."""

import shutil
import subprocess
from pathlib import Path

import pytest

from train_pod import kube, stage

__all__ = ["kube", "stage"]


@pytest.fixture(scope="session")
def postgres() -> None:
    """Debian's package, where the machine has none yet."""
    if not any(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        _install("postgresql")


@pytest.fixture(scope="session")
def rclone() -> None:
    """The same of rclone."""
    if shutil.which("rclone") is None:
        _install("rclone")


def _install(package: str) -> None:
    for command in (["update", "-qq"], ["install", "-qq", "--no-install-recommends", package]):
        subprocess.run(
            ["apt-get", "-o", "DPkg::Lock::Timeout=600", *command],  # two suites may want it at once
            check=True,
            env={"DEBIAN_FRONTEND": "noninteractive", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
