"""The command line before a stub of Kubeflow."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import kfp
import pytest

from cluster_commands import TOKEN, Marble, Said
from commands import run_marble
from marble_kubeflow.pipelines.marble import PACKAGE
from stub_hub import serving
from stub_kfp import StubKfp


@pytest.fixture
def away_from_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No address, token or kubeconfig of the user's own."""
    for name in (
        "KUBERNETES_SERVICE_HOST",
        "KF_PIPELINES_ENDPOINT",
        "KF_PIPELINES_NAMESPACE",
        "KF_PIPELINES_TOKEN",
        "KUBECONFIG",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "home" / "context.json"))
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(PACKAGE, tmp_path / "pipeline.yaml")
    return tmp_path


@pytest.fixture
def marble(away_from_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Marble:
    def run(*arguments: str, code: int = 0) -> Said:
        found = run_marble(*arguments, monkeypatch=monkeypatch)
        out, error = capsys.readouterr()
        said = Said(out)
        said.code, said.error = found, error
        assert found == code, out + error
        assert TOKEN not in out + error
        return said

    return run


@pytest.fixture
def server(away_from_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubKfp]:
    """A Kubeflow without users, whose address the environment gives."""
    stub = StubKfp()
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", stub.url)
    with serving(stub.server):
        yield stub
