"""Fixtures that every test may use: one real S3 server and one real MLflow server for the whole session."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from marble_core.services.local import embedded
from marble_core.storage.s3 import S3
from paths import ROOT, TESTS, write_files
from small_disk import may_mount, mounted, run_in_namespace
from stub_hub import StubHub, serving

pytest.register_assert_rewrite(
    "cluster_commands",
    "commands",
    "engine",
    "killable_training",
    "pages",
    "pods",
    "prompt_files",
    "report_builders",
    "train_pod",
)

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


@pytest.fixture
def file_system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a file system of a size such as 64k or 2g, and returns its directory.

    Who may not mount gets the test run in a namespace of its own, and its result here.
    """
    if not may_mount(tmp_path):
        run_in_namespace(request.node.nodeid)
        request.node.obj = lambda **_: None
        yield lambda _: tmp_path
        return
    with contextlib.ExitStack() as stack:
        yield lambda size: stack.enter_context(mounted(tmp_path / f"disk-{size}", size))


@pytest.fixture(scope="session")
def medium_step() -> dict:
    """What a step of SD3.5-Medium's real shape did (real_shape.py), with its ``peak_bytes`` and those ``before`` the model was there."""
    command = [sys.executable, str(TESTS / "real_shape.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of models, and the hub's settings as its environment variables would make them."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "home" / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path / "home"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    """A hub with the repository ``org/clip``."""
    from huggingface_hub import constants

    stub = StubHub(tmp_path / "served")
    clip = ("config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "flax_model.msgpack")
    write_files(stub.root / "org/clip", *clip)
    monkeypatch.setattr(constants, "ENDPOINT", stub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", stub.url + "/{repo_id}/resolve/{revision}/{filename}")
    with serving(stub.server):
        yield stub
