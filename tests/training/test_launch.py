"""The train stage on several processes: the same model, one run in MLflow, one sentence when it fails, a checkpoint when it is told to end."""

import json
import os
import signal
import subprocess
import sys

import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file

from builders import prepared_run
from marble_core import stages
from marble_core.config.loading import load_config
from marble_core.config.stage_files import ADAPTER_FILE
from marble_core.storage.s3 import S3
from marble_core.training import launch
from marble_core.training.launch import processes_wanted
from marble_core.types import MarbleError
from oracles import relative_error
from paths import ROOT
from waiting import eventually

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("several", [(2,), pytest.param((2, 4), marks=pytest.mark.deep)])
def test_several_processes_train_the_model_that_one_trains_and_track_it_once(services, tmp_path, several):
    adapters = []
    for count in (1, *several):
        directory = tmp_path / str(count)
        where, run_id = prepared_run(directory, f"train.processes={count}", "rollout.prompts=6", "rollout.images_per_prompt=2")
        assert stages.train(where, directory / "adapter")["steps"] > 0
        adapters.append(load_file(directory / "adapter" / ADAPTER_FILE))
    # AdamW's first steps go by the signs of the gradient, so what is rounded otherwise near 0 shows in single weights.
    one, *others = adapters
    assert [relative_error(other, one) < 1e-3 for other in others] == [True] * len(several)
    client = MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("marble").experiment_id], f"tags.`marble.run_id` = '{run_id}'")
    assert [m.step for m in client.get_metric_history(found.info.run_id, "alpha/geneval")] == [1, 2]


def test_what_stops_one_of_the_processes_is_the_stages_one_sentence(services, tmp_path):
    where, _ = prepared_run(
        tmp_path, "train.processes=2", "balance.method=marble", "balance.wishes=['geneval >= 0.9', 'clipscore >= 0.9']"
    )
    with pytest.raises(MarbleError, match="No weights that add up to 1 can meet"):
        stages.train(where, tmp_path / "adapter")


def test_a_stage_that_is_told_to_end_saves_on_all_processes_and_leaves_none(services, tmp_path):
    where, run_id = prepared_run(tmp_path, "train.processes=2", "train.steps=500", "train.checkpoint_every=400")
    events = tmp_path / "progress.jsonl"
    script = "import sys, pathlib; from marble_core import stages; stages.train(*map(pathlib.Path, sys.argv[1:]))"
    stage = subprocess.Popen(
        [sys.executable, "-c", script, str(where), str(tmp_path / "adapter")],
        env={**os.environ, "MARBLE_PROGRESS": str(events)},
        start_new_session=True,
    )
    try:
        assert eventually(lambda: events.exists() and '"done": 2' in events.read_text(), 600)
        stage.send_signal(signal.SIGTERM)  # to the stage alone, as in a container
        assert stage.wait(40) != 0
        with pytest.raises(ProcessLookupError):
            os.killpg(stage.pid, 0)
    finally:
        if stage.poll() is None:
            os.killpg(stage.pid, signal.SIGKILL)
    done = max(json.loads(line).get("done", 0) for line in events.read_text().splitlines())
    saved = S3("marble").prefixes(f"runs/{run_id}/checkpoints")
    assert saved and max(int(name.split("-")[1]) for name in saved) >= done


def test_the_demo_takes_a_process_a_core_and_never_more_than_there_are_gpus(monkeypatch):
    demo, paper = load_config("demo"), load_config("sd35-medium-paper", overrides=["train.processes=8"])
    assert [processes_wanted(demo), processes_wanted(paper)] == [2, 8]
    for gpus, demos in ((1, 1), (2, 2), (8, 2)):
        monkeypatch.setattr(launch, "_gpus", lambda gpus=gpus: gpus)
        assert [processes_wanted(demo), processes_wanted(paper)] == [demos, 8]


def test_processes_share_the_cores_that_they_may_use_and_sleep_while_they_wait(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(launch, "ChildProcess", lambda command, log, env, cwd, grace: started.append((command, env)) or Ended())
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    for usable, threads in ((1, "1"), (2, "1"), (8, "4")):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=usable: set(range(n)))
        launch.train_on(2, tmp_path / "prepared", tmp_path / "adapter")
        command, environment = started.pop()
        assert "--nproc-per-node=2" in command
        assert (environment["OMP_NUM_THREADS"], environment["OMP_WAIT_POLICY"]) == (threads, "PASSIVE")


class Ended:
    """A process that has ended well."""

    def wait(self):
        return 0

    def terminate(self):
        pass


def test_a_process_that_was_started_by_torchrun_starts_no_others(monkeypatch):
    config = load_config("demo", overrides=["train.processes=4"])
    assert processes_wanted(config) == 4 and processes_wanted(load_config("demo", overrides=["train.processes=0"])) == 1
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert processes_wanted(config) == 1


DYING = """
import os, pathlib, signal, sys
from marble_core.training.process_errors import record_error
from marble_core.types import MarbleError, Outage
from waiting import eventually
out, refuses = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]).name == "refuses"
if os.environ["RANK"] == "1":
    record_error(MarbleError("A setting is wrong.") if refuses else Outage("Another process has ended."), str(out))
    (out.parent / "recorded").touch()
    sys.exit(2)
assert eventually((out.parent / "recorded").exists, 60)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("other", "says"),
    [("notices", "on 2 processes ended because something killed one of them, by SIGKILL"), ("refuses", "A setting is wrong.")],
)
def test_of_a_killed_process_and_one_that_noticed_the_killed_one_is_the_news_and_a_refusal_always(
    tmp_path, monkeypatch, other, says
):
    (tmp_path / "dying.py").write_text(DYING)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT / 'tests'}{os.pathsep}{ROOT}")
    with pytest.raises(MarbleError, match=says):
        launch.run_on(2, "dying", [tmp_path / "adapter", tmp_path / other], tmp_path / "adapter", "work", "")
