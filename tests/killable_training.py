"""A training of the demo model, tiny, in real processes that can be killed; and what is left of it afterwards."""

import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient

from marble_core.checkpoints import CheckpointStore, store
from marble_core.config.loading import load_config
from marble_core.prompts.dataset import prepare_data
from marble_core.runtime import distributed
from marble_core.storage.s3 import S3
from marble_core.training import loop, state
from marble_core.training.history_parts import HistoryParts
from marble_core.types import MarbleError

TINY = [
    "rollout.prompts=3", "rollout.images_per_prompt=3", "rollout.steps=2", "loss.timesteps=1", "optimizer.eta_rate=0.2",
    "data.train_size=30", "train.checkpoint_every=1", "storage.keep_every=6", "lora.rank=4",
    ("rewards=[{name: clipscore, options: {checkpoint: 'demo://rewards/clip'}}, "
    "{name: geneval, options: {detector: 'marble_core.demo.shapes:ShapesDetector'}}]"),
]  # fmt: skip
TIMES = ("time/", "images_per_second")
IO = (
    (state, "save_file"), (store, "seal"), (Path, "rename"), (MlflowClient, "log_batch"),
    *((S3, name) for name in ("upload_file", "put", "swap", "delete")),
)  # fmt: skip
PATIENCE = 600.0  # seconds; the machine may be busy


@dataclass(frozen=True)
class Job:
    """One process of a training: ``kill_at`` is the number of a moment before or after a write at which it kills itself,
    ``pace`` the least duration of a step in seconds, ``begins_after`` the steps after which it counts as begun, ``said`` the file
    for the sentence that it ends with, ``patience`` the seconds after which it takes an owner that stands still for dead (0: as usual)."""

    run_id: str
    directory: Path
    overrides: tuple[str, ...]
    environment: dict[str, str]
    kill_at: int = 0
    pace: float = 0.0
    begins_after: int = 0
    patience: float = 0.0
    rank: int = 0
    count: int = 1
    port: int = 0

    @property
    def checkpoints(self) -> Path:
        return self.directory / self.run_id / "checkpoints"

    @property
    def said(self) -> Path:
        return self.directory / f"{self.run_id}.{self.rank}.txt"


def work(job: Job, begun: Any, uploading: Any, cut_off: Any) -> None:
    os.environ |= job.environment | {"OMP_NUM_THREADS": "1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    if job.count > 1:
        names = {"RANK": job.rank, "LOCAL_RANK": job.rank, "WORLD_SIZE": job.count, "LOCAL_WORLD_SIZE": job.count}
        os.environ |= {n: str(v) for n, v in names.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(job.port)}
    torch.set_num_threads(1)
    logging.basicConfig(filename=job.said.with_suffix(".log"), level=logging.WARNING)
    config = load_config("demo", overrides=[*TINY, f"storage.local={job.directory}", *job.overrides])
    prompts = prepare_data(config).train
    step = loop.optimizer_step

    def paced(*arguments: Any) -> Any:
        if arguments[0].step >= job.begins_after:
            begun.set()
        if arguments[0].step == 2 and uploading:
            _stop_in_the_next_upload(uploading, cut_off)
        began = time.monotonic()
        done = step(*arguments)
        threading.Event().wait(max(0.0, job.pace - (time.monotonic() - began)))
        return done

    loop.optimizer_step = paced
    if job.kill_at:
        _kill_at(job.kill_at)
    if job.patience:
        store.CheckpointStore.owned = partialmethod(  # type: ignore[method-assign,assignment]
            store.CheckpointStore.owned, job.patience / 4, job.patience
        )
    try:
        with distributed.processes():
            loop.run_training(config, job.run_id, prompts, job.directory / f"{job.run_id}.adapter")
    except MarbleError as error:
        job.said.write_text(str(error))
        sys.exit(2)
    except Exception:
        job.said.write_text(traceback.format_exc())
        raise


def _kill_at(moment: int) -> None:
    left = [moment]

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            count()
            try:
                return function(*arguments, **options)
            finally:
                count()

        return counted

    for owner, name in IO:
        setattr(owner, name, around(getattr(owner, name)))


def _stop_in_the_next_upload(uploading: Any, cut_off: Any) -> None:
    """The second file of a checkpoint is sent only when the server is gone."""
    upload = S3.upload_file
    sent: list[str] = []

    def cut(self: S3, local: Path, key: str) -> str:
        sent.append(key)
        if len(sent) == 2:
            uploading.set()
            cut_off.wait()
        return upload(self, local, key)

    S3.upload_file = cut  # type: ignore[method-assign]


_context = multiprocessing.get_context("forkserver")  # imports torch and the rest once
_context.set_forkserver_preload(
    ["killable_training", "cvxpy", "mlflow.diffusers", "marble_core.tracking.registry", "scipy.optimize"]
)


class Training:
    """The processes of one attempt at a run."""

    def __init__(
        self, run_id: str, directory: Path, *overrides: str, count: int = 1, outage: bool = False, **options: Any
    ) -> None:
        directory.mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        here = {n: v for n, v in os.environ.items() if n.startswith(("AWS_", "MLFLOW_"))}
        self.begun, self.uploading, self.cut_off = (_context.Event() for _ in range(3))
        self.jobs = [Job(run_id, directory, overrides, here, rank=r, count=count, port=port, **options) for r in range(count)]
        events = (self.begun, self.uploading if outage else None, self.cut_off)
        self.processes = [_context.Process(target=work, args=(job, *events), daemon=True) for job in self.jobs]
        for process in self.processes:
            process.start()

    def kill_after(self, seconds: float, rank: int = 0) -> None:
        """kill -9, so long after its first step began."""
        assert self.begun.wait(PATIENCE), self.said
        threading.Event().wait(seconds)
        self.processes[rank].kill()

    def kill_within(self, seconds: float, moment: float) -> None:
        """kill -9 in the first ``seconds`` of its first step, or while that step's checkpoint is under way: ``moment`` in [0, 1)."""
        assert self.begun.wait(PATIENCE), self.said
        checkpoints, deadline = self.jobs[0].checkpoints, time.monotonic() + moment * seconds
        before = set(checkpoints.glob("step-*"))
        while time.monotonic() < deadline:
            if set(checkpoints.glob("step-*")) - before:
                threading.Event().wait(moment / 2)
                break
            threading.Event().wait(0.01)
        self.processes[0].kill()

    def end(self, seconds: float = PATIENCE) -> list[int]:
        """The exit codes; -9 where killed."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.1, deadline - time.monotonic()))
        codes = [p.exitcode for p in self.processes]
        for process in self.processes:
            process.kill()
        assert None not in codes, f"hangs: {self.said}"
        return [int(code or 0) for code in codes]

    @property
    def said(self) -> str:
        return "\n".join(job.said.read_text() for job in self.jobs if job.said.exists())


@dataclass(frozen=True)
class Left:
    """What a run left on S3 and in MLflow, but for its times."""

    tensors: bytes
    state: dict[str, Any]
    history: list[dict[str, Any]]
    metrics: dict[str, list[tuple[int, str]]]

    @classmethod
    def of(cls, run_id: str, step: int | None = None) -> "Left":
        """At the end, or at an earlier ``step``, whose checkpoint must still be there."""
        remote = CheckpointStore(Path(tempfile.mkdtemp()), S3("marble"), run_id).remote
        assert remote is not None
        names, unfinished = remote.names()
        assert unfinished == [], "nothing half written stays"
        name = remote.latest() if step is None else next(n for n in names if n.startswith(f"step-{step:06d}"))
        assert name is not None
        directory = Path(tempfile.mkdtemp())
        remote.download(name, directory)
        history = HistoryParts().read(directory)
        found = cls(
            (directory / "state.safetensors").read_bytes(),
            {k: v for k, v in json.loads((directory / "state.json").read_text()).items() if k != "config"},
            [{"step": h["step"], "notes": h["notes"], "metrics": _timeless(h["metrics"])} for h in history],
            _timeless(_points(run_id)),
        )
        shutil.rmtree(directory)
        return found


def _timeless(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if not name.startswith(TIMES)}


def _points(run_id: str) -> dict[str, list[tuple[int, str]]]:
    """Every point that MLflow has, in the order of the steps; none may be there twice, not even with another time.

    Values are written out, so that NaN is NaN.
    """
    client = MlflowClient()
    experiment = client.get_experiment_by_name("marble")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`marble.run_id` = '{run_id}'")
    found = {n: [(m.step, repr(m.value)) for m in client.get_metric_history(run.info.run_id, n)] for n in run.data.metrics}
    for name, points in found.items():
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), f"{name} is doubled or out of order: {steps}"
    return found


def status_of(run_id: str) -> str:
    """Of its run in MLflow."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name("marble")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`marble.run_id` = '{run_id}'")
    return str(run.info.status)


def random_moments(seed: int, count: int, most: int) -> list[int]:
    return [random.Random(seed + n).randint(1, most) for n in range(count)]
