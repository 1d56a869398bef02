"""An engine, a base and the images, all made on the spot: whatever is missing here is a failure, not a skip."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from engine import MARKS, STAGES, TAG
from marble_core.runtime.child_process import ChildProcess
from paths import ROOT
from waiting import eventually


def pytest_configure() -> None:
    """Whoever stops the tests wants the engine stopped as well."""
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("stopped", returncode=143))


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The engine that answers, or one of our own, which leaves nothing behind."""
    missing = [
        name for name, program in (("docker.io", "dockerd"), ("debootstrap", "debootstrap")) if not shutil.which(program)
    ]
    if missing:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-qq", "--no-install-recommends", *missing], env=environment, check=True)
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0:
        yield
        return
    place = tmp_path_factory.mktemp("engine")
    socket = f"unix://{place}/engine.sock"
    options = [f"--host={socket}", f"--pidfile={place}/pid", f"--data-root={place}/data", f"--exec-root={place}/exec"]
    # Every container here is on the machine's own network, so no bridge and no rule of a firewall is made.
    # In a mount namespace of its own, which takes all its mounts with it, whatever ends it.
    command = ["unshare", "--mount", "dockerd", *options, "--bridge=none", "--iptables=false"]
    daemon = ChildProcess(command, place / "log", os.environ, place, grace=40)
    os.environ["DOCKER_HOST"] = socket
    try:
        answers = eventually(
            lambda: subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0, seconds=60
        )
        assert answers, (place / "log").read_text()
        yield
    finally:
        del os.environ["DOCKER_HOST"]
        daemon.terminate()
        daemon.wait()
        shutil.rmtree(place / "data", ignore_errors=True)


@pytest.fixture(scope="session")
def images(engine: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The images' names by stage, and the command line's, as `make images` builds them, with torch in the build that this machine's pip finds."""
    wheels = tmp_path_factory.mktemp("torch")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
    subprocess.run([*pip, *os.environ.get("TORCH", "torch==2.13.0").split()], check=True)
    (torch,) = wheels.glob("torch-*.whl")
    build = [sys.executable, str(ROOT / "images" / "build.py"), "--tag", TAG, "--torch", str(torch), "--flags=--network=host"]
    done = subprocess.run(build, env=os.environ | MARKS, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:]
    return {image: f"marble-{image}:{TAG}" for image in (*STAGES, "cli")}
