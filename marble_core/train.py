"""Training: steps, checkpoints, tracking, and a clean end on SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch

from marble_core import distributed
from marble_core.assets import resolve
from marble_core.balance import make_balancer
from marble_core.config import RunConfig
from marble_core.policy import Policy
from marble_core.rewards import load_scorers
from marble_core.state import HISTORY, load_state, save_state, write_history
from marble_core.step import Learner, optimizer_step
from marble_core.types import MarbleError, Prompt, StepReport


class Checkpoints(Protocol):
    def save(self, step: int, write: Callable[[Path], None]) -> str: ...

    def latest(self) -> Path | None: ...


class Terminated(Exception):
    """SIGTERM arrived: the unfinished step is dropped and the state after the last finished one is saved."""


def start(config: RunConfig) -> Learner:
    """A learner before its first step. Wishes are checked, and the scorers check themselves, before the large model is loaded."""
    balancer = make_balancer(config.balance, config.reward_names, config.train.steps)
    scorers = load_scorers(config.rewards)
    policy = Policy.load(config)
    policy.add_trainable(config)
    optimizer = torch.optim.AdamW(
        list(policy.parameters_of("default").values()),
        lr=config.optimizer.lr,
        betas=config.optimizer.betas,
        weight_decay=config.optimizer.weight_decay,
    )
    return Learner(config, policy, scorers, balancer, optimizer)


def train(learner: Learner, prompts: Sequence[Prompt], checkpoints: Checkpoints, report: Callable[[StepReport], None]) -> None:
    """Train to ``config.train.steps``, going on from the newest checkpoint of this run where there is one.

    ``report`` is called after each step, of several processes on rank 0, which alone writes checkpoints; all of them load.
    Raises MarbleError when ``max_bad_steps`` steps in a row had a fault.
    """
    with distributed.local_main_first():
        directory = checkpoints.latest()
    if directory:
        load_state(learner, directory)
    distributed.require_same(learner.step, "the step that they go on from")

    def save() -> None:
        if distributed.rank() == 0:
            checkpoints.save(learner.step, lambda directory: save_state(learner, directory))

    limits, bad = learner.config.train, 0
    with _terminable(learner) as termination:
        try:
            while learner.step < limits.steps:
                done = optimizer_step(learner, prompts)
                if distributed.rank() == 0:
                    report(done)
                termination.check()
                bad = bad + 1 if done.fault else 0
                if bad >= limits.max_bad_steps:
                    raise MarbleError(
                        f"{bad} steps in a row were skipped for a fault, the last because {'; '.join(done.notes)}."
                    )
                if learner.step % limits.checkpoint_every == 0 or learner.step == limits.steps:
                    save()
        except Terminated:
            save()
            raise


class _Termination:
    """SIGTERM drops the unfinished step at once, but never in the middle of an update of the weights."""

    def __init__(self, learner: Learner) -> None:
        self.learner, self.asked = learner, False

    def __call__(self, signum: int, frame: object) -> None:
        again, self.asked = self.asked, True
        if not self.learner.updating and not again:  # a second signal must not break off the saving
            raise Terminated

    def check(self) -> None:
        if self.asked:
            raise Terminated


@contextmanager
def _terminable(learner: Learner) -> Iterator[_Termination]:
    termination = _Termination(learner)
    before = signal.signal(signal.SIGTERM, termination)
    try:
        yield termination
    finally:
        signal.signal(signal.SIGTERM, before)


def run_training(config: RunConfig, run_id: str, prompts: Sequence[Prompt], out: Path) -> dict[str, float]:
    """The train stage: ``out`` becomes the adapter's directory (the EMA of ``default``), with the history beside it.

    Checkpoints go to the run's prefix in S3, metrics to its MLflow run; a run that was begun before goes on where it was.
    Returns the last step's metrics. Of several processes (called within ``distributed.processes()``) rank 0 does all this.
    """
    from marble_core import progress, registry
    from marble_core.checkpoint import CheckpointStore
    from marble_core.storage import S3
    from marble_core.tracking import Tracker, run_params

    s3 = S3(config.storage.bucket)
    s3.require_bucket()
    with distributed.local_main_first():
        checkpoints = CheckpointStore(out.parent / "checkpoints", s3, run_id)
    if distributed.rank() > 0:
        train(start(config), prompts, checkpoints, lambda _: None)
        return {}
    tracker = Tracker.start(config.storage.experiment, run_id, run_id, run_params(config))
    status = "FAILED"
    try:
        learner = start(config)

        def report(done: StepReport) -> None:
            tracker.log_step(done)
            progress.emit("train", done.step, config.train.steps, "; ".join(done.notes), done.metrics)

        train(learner, prompts, checkpoints, report)
        learner.policy.save_adapter(out, learner.policy.ema)
        write_history(learner.history, out / HISTORY)
        tracker.log_artifact(out / HISTORY)
        metadata = {"rewards": list(config.reward_names), "method": config.balance.method, "config": config.digest}
        registry.log_adapter(out, str(resolve(config.model.path)), tracker.mlflow_run_id, learner.step, metadata)
        status = "RUNNING"  # evaluation and the gate still belong to the run
    except Terminated:
        status = "KILLED"
        raise
    finally:
        tracker.end(status)
    return dict(learner.history[-1]["metrics"]) if learner.history else {}
