"""Nobody but the user who started them gets anything of the embedded servers."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from marble_core.services.local import addresses, embedded
from paths import TESTS


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict[str, str], int]:
    """What another user sees of servers in a directory that was open before they were started."""
    place = tmp_path_factory.mktemp("open") / "root"
    place.mkdir(mode=0o755)
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith(("AWS_", "MLFLOW_"))]:
            patch.delenv(name)
        for each in (place.parent, place.parents[1], place.parents[2]):
            if each != Path("/"):
                each.chmod(0o755)  # pytest's directories are closed: the servers' own must be
        with embedded(place, bucket="marble") as environment:
            weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
            command = [sys.executable, str(TESTS / "another_user.py"), str(place), str(weed)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout), environment, stat.S_IMODE(place.stat().st_mode)


def test_no_port_socket_shell_or_file_of_the_servers_lets_another_user_in(seen: tuple) -> None:
    found, _, mode = seen
    assert found["servers"] >= 2 and found["ports"] >= 11, "the servers were not found, so nothing was tried"
    assert found["let in"] == []
    assert mode == 0o700


def test_no_command_line_of_the_servers_shows_a_key(seen: tuple) -> None:
    found, environment, _ = seen
    secrets = [environment[n] for n in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD")]
    assert len(set(secrets)) == 3 and not any(secret in str(found["lines"]) for secret in secrets)


def test_another_command_of_the_same_user_gets_the_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # S3 is not started
    with embedded(tmp_path / "a%41 b?c#d") as environment:  # a name that would be no part of a URL
        assert addresses(tmp_path / "a%41 b?c#d") == environment
        script = "from mlflow import MlflowClient; import os; c = MlflowClient(); r = c.create_run('0').info.run_id; \
c.log_text(r, 'kept', 'note.txt'); print(len(c.list_artifacts(r)))"
        done = subprocess.run(
            [sys.executable, "-c", script], env=os.environ | environment, capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == "1", done.stderr
    made = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert made == {"a%41 b?c#d"} and (tmp_path / "a%41 b?c#d" / "mlflow" / "mlflow.db").is_file()
