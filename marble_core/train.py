"""Training: steps, checkpoints, tracking, and a clean end on SIGTERM."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file

from marble_core import distributed
from marble_core.assets import portable
from marble_core.balance import make_balancer
from marble_core.config import BALANCING, RunConfig
from marble_core.policy import Policy
from marble_core.rewards import load_scorers
from marble_core.step import Learner, optimizer_step
from marble_core.types import MarbleError, Prompt, StepReport

HISTORY = "history.jsonl"


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


def save_state(learner: Learner, directory: Path) -> None:
    """Everything the next step depends on, as safetensors and JSON."""
    policy = learner.policy
    names = list(policy.parameters_of("default"))
    tensors: dict[str, torch.Tensor] = {
        f"{adapter}/{n}": p for adapter in ("default", "old") for n, p in policy.parameters_of(adapter).items()
    }
    tensors |= {f"ema/{n}": p for n, p in policy.ema.items()}
    for n, p in policy.parameters_of("default").items():
        tensors |= {f"adam/{key}/{n}": value for key, value in learner.optimizer.state[p].items()}
    save_file({n: t.detach().contiguous() for n, t in tensors.items()}, directory / "state.safetensors")
    state = {
        "step": learner.step,
        "updates": learner.updates,
        "old_is_default": policy.old_is_default,
        "balancer": learner.balancer.state(),
        "config": learner.config.digest,
        "method": learner.config.balance.method,
        "rewards": list(learner.config.reward_names),
        "parameters": names,
    }
    (directory / "state.json").write_text(json.dumps(state, indent=2))
    (directory / "config.json").write_text(learner.config.to_json())
    write_history(learner.history, directory / HISTORY)


def write_history(history: Sequence[dict[str, Any]], path: Path) -> None:
    """One JSON line a step: step, metrics, notes."""
    path.write_text("".join(json.dumps(line) + "\n" for line in history))


def read_history(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / HISTORY).read_text().splitlines()]


def load_state(learner: Learner, directory: Path) -> None:
    """The inverse of ``save_state``. Raises MarbleError if the checkpoint belongs to another configuration."""
    state: dict[str, Any] = json.loads((directory / "state.json").read_text())
    tensors = load_file(directory / "state.safetensors")
    policy = learner.policy
    default = policy.parameters_of("default")
    if state["parameters"] != list(default) or any(tensors[f"default/{n}"].shape != p.shape for n, p in default.items()):
        raise MarbleError(f"The checkpoint {directory} belongs to another model or LoRA rank; start with another run id.")
    ours = {"method": learner.config.balance.method, "rewards": list(learner.config.reward_names)}
    for key, value in ours.items():
        if state[key] != value:
            raise MarbleError(
                f"The checkpoint {directory} was made with {key} {state[key]}, not {value}; start with another run id."
            )
    with torch.no_grad():
        for adapter in ("default", "old"):
            for n, p in policy.parameters_of(adapter).items():
                p.copy_(tensors[f"{adapter}/{n}"])
    policy.ema = {n: tensors[f"ema/{n}"].clone() for n in default}
    for n, p in default.items():
        if f"adam/step/{n}" in tensors:
            learner.optimizer.state[p] = {key: tensors[f"adam/{key}/{n}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")}
    policy.old_is_default = state["old_is_default"]
    learner.balancer.load_state(state["balancer"])
    learner.step, learner.updates = state["step"], state["updates"]
    learner.history = read_history(directory)


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


def run_training(config: RunConfig, run_id: str, prompts: Sequence[Prompt], out: Path) -> None:
    """The train stage: ``out`` becomes the adapter's directory (the EMA of ``default``), with the history beside it.

    Checkpoints go to the run's prefix in S3, metrics to its MLflow run; a run that was begun before goes on where it was.
    Of several processes (called within ``distributed.processes()``) rank 0 does all this.
    """
    from marble_core import glossary, progress, registry
    from marble_core.checkpoint import CheckpointStore
    from marble_core.storage import S3
    from marble_core.tracking import Tracker, run_params

    s3 = S3(config.storage.bucket)
    s3.require_bucket()
    with distributed.local_main_first():
        checkpoints = CheckpointStore(out.parent / "checkpoints", s3, run_id)
    if distributed.rank() > 0:
        train(start(config), prompts, checkpoints, lambda _: None)
        return
    said = {"mlflow.note.content": glossary.as_markdown()}
    tracker = Tracker.start(config.storage.experiment, run_id, run_id, run_params(config), said)
    if config.balance.method in BALANCING or config.balance.observe:
        progress.emit("train", note=glossary.of_the_progress_line())
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
        registry.log_adapter(out, portable(config.model.path), tracker.mlflow_run_id, learner.step, metadata)
        status = "RUNNING"  # evaluation and the gate still belong to the run
    except Terminated:
        status = "KILLED"
        raise
    finally:
        tracker.end(status)
