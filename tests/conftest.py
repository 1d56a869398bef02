"""Fixtures that every test may use: one real S3 server and one real MLflow server for the whole session."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from marble_core.services.local import embedded
from marble_core.storage.s3 import S3

ROOT = Path(__file__).resolve().parents[1]

# Nothing of the user's own servers, and processes that the tests start find the packages.
for name in [n for n in os.environ if n.startswith(("AWS_", "MLFLOW_", "MARBLE_"))]:
    del os.environ[name]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# What a shell starts in the background, as CI may, ignores SIGINT, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_test_names_a_tracking_server_to_the_next() -> Iterator[None]:
    """mlflow.set_tracking_uri sets the variable too."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a real S3 server and a real MLflow server."""
    with embedded(tmp_path_factory.mktemp("servers"), bucket="marble") as environment:
        yield environment


@pytest.fixture
def services(servers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The servers, in the environment of the test; with the bucket ``marble``."""
    _use(servers, monkeypatch)
    return servers


@pytest.fixture(scope="module")
def services_of_module(servers: dict[str, str]) -> Iterator[None]:
    """The same for fixtures of a module."""
    with pytest.MonkeyPatch.context() as patch:
        _use(servers, patch)
        yield


def _use(servers: dict[str, str], patch: pytest.MonkeyPatch) -> None:
    for name, value in servers.items():
        patch.setenv(name, value)
    if mlflow := sys.modules.get("mlflow"):
        mlflow.set_tracking_uri(servers["MLFLOW_TRACKING_URI"])  # it remembers another test's above the environment's


@pytest.fixture
def bucket(services: dict[str, str]) -> S3:
    """A bucket of the test's own."""
    s3 = S3(f"test-{uuid.uuid4().hex[:12]}")
    s3.require_bucket(create=True)
    return s3


@pytest.fixture(scope="session")
def medium_step() -> dict:
    """What a step of SD3.5-Medium's real shape did (real_shape.py), with its ``peak_bytes`` and those ``before`` the model was there."""
    command = [sys.executable, str(ROOT / "tests" / "real_shape.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.05)
    return True


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" not in status.read_text()
