"""docs/backup.md: what its commands have saved of real servers is there again after database and bucket were lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from marble_core.services.local import embedded
from marble_core.services.mlflow_server import MLflow
from marble_core.services.seaweedfs import SeaweedFS
from marble_core.services.server import free_ports
from paths import ROOT

REPORT = "<!doctype html><title>The report of nightly-7</title>"
WEIGHTS = bytes(range(256)) * 300
KEY = "runs/nightly-7/checkpoints/step-000010-3fa9c1d2/manifest.json"
# In a process of its own, so that no client of another test is remembered; "leave" or "find".
CLIENT = """
import json, os, sys
from pathlib import Path
import boto3, mlflow
from mlflow import MlflowClient

action, directory, report, key = sys.argv[1:]
client, s3 = MlflowClient(), boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
if action == "leave":
    experiment = client.create_experiment("marble")
    run = client.create_run(experiment, tags={"marble.run_id": "nightly-7"}, run_name="nightly-7")
    for step, value in enumerate((0.25, 0.5), 1):
        client.log_metric(run.info.run_id, "reward/ocr/mean", value, step=step)
    client.log_text(run.info.run_id, report, "report.html")
    client.log_artifact(run.info.run_id, str(Path(directory) / "adapter.safetensors"), "adapter")
    client.set_terminated(run.info.run_id)
    client.create_registered_model("marble")
    source = f"{run.info.artifact_uri}/adapter"
    version = client.create_model_version("marble", source, run.info.run_id)
    client.set_registered_model_alias("marble", "champion", version.version)
    s3.put_object(Bucket="marble", Key=key, Body=b"{}")
else:
    champion = client.get_model_version_by_alias("marble", "champion")
    run = client.get_run(champion.run_id)
    to = Path(directory) / "found"
    to.mkdir(exist_ok=True)
    weights = Path(mlflow.artifacts.download_artifacts("models:/marble@champion", dst_path=str(to))) / "adapter.safetensors"
    history = [m.value for m in client.get_metric_history(run.info.run_id, "reward/ocr/mean")]
    print(json.dumps({
        "version": champion.version, "run": run.data.tags["marble.run_id"], "status": run.info.status, "history": history,
        "report": mlflow.artifacts.load_text(f"{run.info.artifact_uri}/report.html"), "weights": weights.read_bytes().hex(),
        "checkpoint": s3.get_object(Bucket="marble", Key=key)["Body"].read().decode(),
    }))
"""


def client(action: str, directory: Path, environment: Mapping[str, str]) -> str:
    command = [sys.executable, "-c", CLIENT, action, str(directory), REPORT, KEY]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def leave(directory: Path, environment: Mapping[str, str]) -> None:
    (directory / "adapter.safetensors").write_bytes(WEIGHTS)
    client("leave", directory, environment)


def assert_found(directory: Path, environment: Mapping[str, str]) -> None:
    found = json.loads(client("find", directory, environment).splitlines()[-1])
    assert found.pop("weights") == WEIGHTS.hex()
    assert str(found.pop("version")) == "1"
    assert found == {"run": "nightly-7", "status": "FINISHED", "history": [0.25, 0.5], "report": REPORT, "checkpoint": "{}"}


def run_commands(heading: str, what: str, cwd: Path, **more: str) -> None:
    """The block of docs/backup.md, as it stands there."""
    page = (ROOT / "docs" / "backup.md").read_text(encoding="utf-8")
    below = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    (block,) = re.findall(rf"^```bash\n# {what}\n(.*?)^```$", below, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        ["bash", "-euc", block], cwd=cwd, env={**os.environ, **more}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_laptops_champion_run_report_and_checkpoint_are_there_again_after_all_was_lost(tmp_path: Path) -> None:
    with embedded(tmp_path / ".marble", bucket="marble") as environment:
        leave(tmp_path, environment)
    run_commands("On a laptop", "back up", tmp_path)
    assert (tmp_path / "marble-backup.tar.gz").stat().st_mode & 0o077 == 0, "it holds the keys"
    shutil.rmtree(tmp_path / ".marble")
    run_commands("On a laptop", "restore", tmp_path)
    with embedded(tmp_path / ".marble", bucket="marble") as environment:
        assert_found(tmp_path, environment)


# The chart's Postgres by its real programs, with kubectl replaced by one that runs the command here.

KUBECTL = """#!/bin/bash
set -eu
echo "$*" >> "$KUBECTL_LOG"
while [ $# -gt 0 ] && [ "$1" != -- ]; do shift; done
[ $# -gt 0 ] || exit 0
shift
PATH="$POSTGRES_BIN:$PATH" exec "$@"
"""


class OnPostgres(MLflow):
    """MLflow's server as the chart runs it: on Postgres, with artifacts below mlflow/ of the one bucket."""

    def __init__(self, root: Path, s3: Mapping[str, str], port: int) -> None:
        super().__init__(root, s3)
        self._database = f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/mlflow"

    def command(self) -> tuple[list[str], dict[str, str]]:
        command, environment = super().command()
        command[command.index("--backend-store-uri") + 1] = self._database
        command[command.index("--artifacts-destination") + 1] = "s3://marble/mlflow"
        return command, environment


@contextmanager
def postgres_server(port: int) -> Iterator[Path]:
    """With an empty database ``mlflow``; yields the directory of its programs."""
    (programs, *_) = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    data = Path(tempfile.mkdtemp(prefix="marble-postgres-"))
    if user:
        shutil.chown(data, "postgres", "postgres")

    def call(*command: object) -> None:
        said = subprocess.run([*user, *map(str, command)], capture_output=True, text=True, check=False, cwd="/")
        assert said.returncode == 0, said.stderr

    try:
        call(programs / "initdb", "--no-sync", "--auth=trust", "--username=mlflow", "-D", data / "data")
        options = f"-h 127.0.0.1 -p {port} -k {data} -F"
        call(programs / "pg_ctl", "-D", data / "data", "-o", options, "-l", data / "log", "-w", "start")
        try:
            call(programs / "createdb", "-h", "127.0.0.1", "-p", port, "-U", "mlflow", "mlflow")
            yield programs
        finally:
            call(programs / "pg_ctl", "-D", data / "data", "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(data)


@pytest.mark.deep  # five servers start, one after another: a minute
def test_a_charts_champion_run_report_and_checkpoint_are_there_again_after_database_and_bucket_were_lost(
    tmp_path: Path, postgres: None, rclone: None
) -> None:
    more = {"RELEASE": "marble", "BUCKET": "marble", "KUBECTL_LOG": str(tmp_path / "kubectl.log"), "PGHOST": "127.0.0.1"}
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "kubectl").write_text(KUBECTL)
    (tmp_path / "bin" / "kubectl").chmod(0o755)
    for name, lost in (("before", False), ("after", True)):
        (port,) = free_ports(1)
        with ExitStack() as stack:
            programs = stack.enter_context(postgres_server(port))
            s3 = stack.enter_context(SeaweedFS(tmp_path / name / "s3"))
            s3.make_bucket("marble")
            servers = {**s3.environment, "AWS_ENDPOINT_URL_S3": s3.environment["AWS_ENDPOINT_URL"]}
            own = {
                **more,
                **servers,
                "PGPORT": str(port),
                "POSTGRES_BIN": str(programs),
                "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            }
            if lost:  # new servers, with nothing in them
                run_commands("On a cluster", "restore", tmp_path, **own)
            with OnPostgres(tmp_path / name / "mlflow", s3.environment, port) as mlflow:
                environment = {**s3.environment, **mlflow.environment}
                if lost:
                    assert_found(tmp_path, environment)
                else:
                    leave(tmp_path, environment)
                    run_commands("On a cluster", "back up", tmp_path, **own)
        shutil.rmtree(tmp_path / name)
    said = (tmp_path / "kubectl.log").read_text().splitlines()
    assert [line.split()[2] for line in said] == ["exec", "scale", "exec", "scale"], (
        "MLflow is away while its database is restored"
    )
