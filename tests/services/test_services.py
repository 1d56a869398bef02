"""The embedded services are real, private, and end with the process that started them."""

import contextlib
import copy
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlparse

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from mlflow import MlflowClient

from marble_core.services import local as module
from marble_core.services import seaweedfs, server
from marble_core.services.local import addresses, embedded
from marble_core.services.seaweedfs import SeaweedFS
from marble_core.storage.s3 import S3
from marble_core.types import MarbleError
from waiting import eventually

RUN = """
import json, os, signal, sys
from pathlib import Path
from marble_core.services.local import embedded
from marble_core.storage.s3 import S3
with embedded(Path(sys.argv[1]), "marble") as environment:
    os.environ.update(environment)
    S3("marble").put_json("kept", {"by": "the first run"})
    print(json.dumps(environment), flush=True)
    signal.pause()
"""


def answers(url: str) -> bool:
    parts = urlparse(url)
    with socket.socket() as client:
        return client.connect_ex((parts.hostname, parts.port)) == 0


def test_the_embedded_s3_is_on_loopback_and_refuses_everybody_else(services: dict[str, str]) -> None:
    url = services["AWS_ENDPOINT_URL"]
    assert urlparse(url).hostname == "127.0.0.1"
    stranger = boto3.Session().client("s3", endpoint_url=url, config=Config(signature_version=UNSIGNED))
    with pytest.raises(ClientError, match="AccessDenied"):
        stranger.put_object(Bucket="marble", Key="x", Body=b"")
    thief = boto3.Session("someone", "else").client("s3", endpoint_url=url)
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        thief.list_objects_v2(Bucket="marble")


def test_the_embedded_mlflow_is_on_loopback_and_answers_its_own_user(services: dict[str, str]) -> None:
    url = services["MLFLOW_TRACKING_URI"]
    assert urlparse(url).hostname == "127.0.0.1"
    assert MlflowClient(url).get_experiment_by_name("Default")


def test_the_services_that_the_environment_names_are_used_and_nothing_is_started(
    services: dict[str, str], tmp_path: Path
) -> None:
    with embedded(tmp_path / "root") as environment:
        assert environment == {}
    assert not (tmp_path / "root").exists()


def test_only_the_missing_service_is_started_with_keys_that_nobody_else_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with embedded(tmp_path) as environment:
        assert "MLFLOW_TRACKING_URI" not in environment
        assert stat.S_IMODE((tmp_path / "s3" / "keys.json").stat().st_mode) == 0o600
        assert addresses(tmp_path) == environment
        with pytest.raises(MarbleError, match="Another marble command uses"), module._locked(tmp_path, patience=0):
            pass
        secret = environment["AWS_SECRET_ACCESS_KEY"]
        readable = [p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_mode & 0o077]
        assert not any(secret.encode() in path.read_bytes() for path in readable)
    assert addresses(tmp_path) == {}
    assert not answers(environment["AWS_ENDPOINT_URL"])


def test_keys_and_data_stay_from_run_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for _ in range(2):
        with SeaweedFS(tmp_path) as server:
            use(server, monkeypatch)
            s3 = S3("marble")
            s3.require_bucket(create=True)
            seen.append((server.environment["AWS_SECRET_ACCESS_KEY"], s3.get_json("kept")))
            s3.put_json("kept", "yes")
    (first, nothing), (second, kept) = seen
    assert first == second and nothing is None and kept == "yes"


@pytest.mark.slow
def test_kill_9_of_the_parent_leaves_no_server_and_the_next_run_finds_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    environment = json.loads(parent.stdout.readline())
    urls = [environment["AWS_ENDPOINT_URL"], environment["MLFLOW_TRACKING_URI"]]
    assert all(answers(url) for url in urls)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert eventually(lambda: not any(answers(url) for url in urls))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with embedded(tmp_path) as again:
        for name, value in again.items():
            monkeypatch.setenv(name, value)
        assert S3("marble").get_json("kept") == {"by": "the first run"}


def use(server: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


def test_a_hundred_buckets_fit_on_two_gigabytes(file_system: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with SeaweedFS(file_system("2g") / "s3") as server:
        use(server, monkeypatch)
        s3 = S3("bucket")
        buckets = [copy.copy(s3) for _ in range(100)]  # with one client, which takes a while to make
        for n, bucket in enumerate(buckets):
            bucket.bucket = f"bucket-{n}"

        def fill(bucket: S3) -> None:
            bucket.require_bucket(create=True)
            bucket.put("object", bucket.bucket.encode())

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(fill, buckets))
        assert [bucket.get("object")[0].decode() for bucket in buckets] == [f"bucket-{n}" for n in range(100)]  # type: ignore[index]


def test_a_disk_that_fills_up_is_one_sentence_that_names_it_and_what_was_written_stays(
    file_system: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = file_system("64m")
    with SeaweedFS(disk / "s3") as server:
        use(server, monkeypatch)
        s3 = S3("marble")
        s3.require_bucket(create=True)
        s3.put("before", b"kept")
        sentence = rf"^The disk of {disk}/s3 is full: \d+ MB of 0\.1 GB are free, .*\. Free some space, or work in another directory\.$"
        with pytest.raises(MarbleError, match=sentence):
            s3.put("too-large", bytes(80_000_000))
        (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free))
        with pytest.raises(MarbleError, match=sentence):
            s3.put("small", b"x" * 100_000)
        assert s3.get_json("nothing") is None and s3.get("before")[0] == b"kept"  # type: ignore[index]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with pytest.raises(MarbleError, match=rf"^The disk of {disk} is full"), embedded(disk):
        pass


def test_volumes_larger_than_new_ones_may_become_stay_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seaweedfs, "VOLUME_MB", 1024)  # as SeaweedFS chose it itself on a large disk
    parts = {f"part-{n}": bytes([n]) * 20_000_000 for n in range(5)}
    with SeaweedFS(tmp_path) as server:
        use(server, monkeypatch)
        s3 = S3("marble")
        s3.require_bucket(create=True)
        for key, content in parts.items():
            s3.put(key, content)
    assert max(volume.stat().st_size for volume in (tmp_path / "data").glob("marble_*.dat")) > 70_000_000
    monkeypatch.undo()
    with SeaweedFS(tmp_path) as server:
        use(server, monkeypatch)
        s3 = S3("marble")
        s3.put("new", parts["part-1"])
        s3.put("part-0", b"replaced")
        assert all(
            s3.get(key)[0] == content for key, content in (parts | {"part-0": b"replaced", "new": parts["part-1"]}).items()
        )  # type: ignore[index]


def test_a_port_that_another_process_took_meanwhile_is_replaced_and_no_socket_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken, free = other.getsockname()[1], server.free_ports
        offered: list[list[int]] = []

        def ports(count: int) -> list[int]:
            offered.append(free(count) if offered else [taken, *free(count - 1)])
            return list(offered[-1])

        monkeypatch.setattr(seaweedfs, "free_ports", ports)
        before = set(Path("/tmp").glob("seaweedfs-*.sock"))  # a killed server's, whose port may be free again
        with SeaweedFS(tmp_path) as s3:
            assert answers(s3.environment["AWS_ENDPOINT_URL"])
        after = set(Path("/tmp").glob("seaweedfs-*.sock"))
    assert len(offered) == 2
    assert not [path for path in after - before if int(re.findall(r"\d+", path.name)[-1]) in offered[1]]


def test_a_starting_server_removes_the_sockets_of_killed_ones_and_no_others(tmp_path: Path) -> None:
    def socket_at(name: str, listens: bool = False, age: float = 3600.0, owner: int = os.getuid()) -> Path:
        path = Path(f"/tmp/seaweedfs-{name}-{tmp_path.parent.parent.name[-3:]}{os.getpid()}.sock")
        one = stack.enter_context(socket.socket(socket.AF_UNIX))
        one.bind(str(path))
        stack.callback(path.unlink, missing_ok=True)
        if listens:
            one.listen()
        os.utime(path, (time.time() - age,) * 2)
        os.chown(path, owner, -1)
        return path

    with contextlib.ExitStack() as stack:
        dead, live, young = socket_at("dead"), socket_at("live", listens=True), socket_at("young", age=1.0)
        others = [socket_at("other", owner=65534)] if os.getuid() == 0 else []
        file = Path(f"/tmp/seaweedfs-file-{os.getpid()}.sock")
        file.write_text("no socket")
        stack.callback(file.unlink)
        os.utime(file, (0, 0))
        with SeaweedFS(tmp_path):
            assert not dead.exists() and all(path.exists() for path in (live, young, file, *others))


def test_a_server_that_does_not_start_is_one_sentence_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "weed"
    fake.write_text("#!/bin/sh\necho no disk\nexit 4\n")
    fake.chmod(0o755)
    monkeypatch.setattr(seaweedfs.shutil, "which", lambda *_, **__: str(fake))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    sentence = r"^The embedded S3 server ended with code 4 as it started; see .*server\.log\.$"
    with pytest.raises(MarbleError, match=sentence), embedded(tmp_path / "root"):
        pass
    assert (tmp_path / "root" / "s3" / "server.log").read_text() == "no disk\n"


def test_a_proxy_in_the_environment_does_not_stand_between(monkeypatch: pytest.MonkeyPatch) -> None:
    assert server.past_proxies() == {}
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "intra")
    assert server.past_proxies() == {"no_proxy": "intra,127.0.0.1", "NO_PROXY": "intra,127.0.0.1"}
