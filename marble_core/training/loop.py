"""Training: steps, checkpoints, tracking, and a clean end on SIGTERM."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from marble_core.algorithm.learner import Learner
from marble_core.algorithm.methods import make_balancer
from marble_core.checkpoints import Away, CheckpointStore, Taken
from marble_core.checkpoints.start_from import beginning
from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import HISTORY, PROGRESS, WATCH
from marble_core.evaluation.watch import Look
from marble_core.models.policy import Policy
from marble_core.rewards.registry import load_scorers
from marble_core.runtime import distributed
from marble_core.runtime.gpus import say_missing_gpus
from marble_core.runtime.offload import resident_bytes
from marble_core.runtime.sigterm import Terminated
from marble_core.step import optimizer_step
from marble_core.storage.s3 import S3
from marble_core.storage.uri import portable
from marble_core.tracking.step_history import write_history
from marble_core.training.history_parts import HistoryParts
from marble_core.training.progress_report import ProgressReport
from marble_core.training.samples import Samples
from marble_core.training.saving import Checkpoints, Saving
from marble_core.training.state import load_state, load_weights
from marble_core.training.termination import terminable
from marble_core.training.watching import Watch
from marble_core.types import MarbleError, Outage, Prompt, StepReport

if TYPE_CHECKING:
    from marble_core.tracking.tracker import Tracker

_log = logging.getLogger(__name__)
LAST_SECONDS = 12.0  # for the upload of the last state after SIGTERM, of the 30 s that a cluster gives us


def start_learner(config: RunConfig) -> Learner:
    """A learner before its first step. Wishes are checked, and the scorers check themselves, before the large model is loaded.

    Args:
        config: A configuration whose batch sizes are not 0; ``marble_core.estimate.resolve_batch_sizes`` chooses those.

    Returns:
        The base model with an untrained LoRA, the rewards, the balancer and the optimizer.

    Raises:
        MarbleError: A model, a checkpoint of a reward or a wish cannot be had, or a reward's own check fails.

    Example:
        >>> learner = start_learner(load_config("demo", overrides=["train.steps=4"]))
    """
    assert config.rollout.batch_size and config.loss.micro_batch, "resolve_batch_sizes comes first"
    balancer = make_balancer(config.balance, config.reward_names, config.train.steps)
    scorers = load_scorers(config.rewards, config.model.offloads_scorers)
    policy = Policy.load(config)
    policy.add_trainable(config)
    optimizer = torch.optim.AdamW(
        list(policy.parameters_of("default").values()),
        lr=config.optimizer.lr,
        betas=config.optimizer.betas,
        weight_decay=config.optimizer.weight_decay,
    )
    return Learner(config, policy, scorers, balancer, optimizer)


def train(
    learner: Learner,
    prompts: Sequence[Prompt],
    checkpoints: Checkpoints,
    report: Callable[[StepReport], None],
    watch: Watch | None = None,
    begun: Callable[[], None] = lambda: None,
) -> None:
    """Train to ``config.train.steps``, going on from the newest checkpoint of this run where there is one.

    Of several processes rank 0 alone writes checkpoints, and calls ``begun`` before step 1 and ``report`` after each; all of them load.
    ``watch`` looks in between, and may end the training at an earlier checkpoint, as which the learner is left then.
    Raises MarbleError when ``max_bad_steps`` steps in a row had a fault, or S3 stays away; the state is then saved on the disk. And
    when the first ``max_silent_steps`` had no signal, for then there is nothing to save.
    """
    watch = watch or Watch(learner.config)
    parts = _go_on(learner, checkpoints, watch)
    prompts = tuple(prompts)  # by which a step knows that they are the same (prompts.mixing)
    limits, first, saving = learner.config.train, distributed.rank() == 0, Saving(learner, checkpoints, watch, parts)
    with terminable(learner) as termination:
        try:
            if first and learner.step == 0:
                begun()
            if saving.look():
                saving.save()
            while learner.step < limits.steps and not watch.stopped:
                done = optimizer_step(learner, prompts)
                saving.bad = saving.bad + 1 if done.fault else 0
                with termination.deferred():
                    if first:
                        checkpoints.check()  # before anybody hears of a step that is another process's by now
                        report(done)
                wanted = saving.look() or saving.due()
                with termination.deferred():
                    if wanted and not saving.bad:
                        saving.save()
                _require_signal(learner, done)
                if saving.bad >= limits.max_bad_steps:
                    raise MarbleError(
                        f"{saving.bad} steps in a row were skipped for a fault, the last because {'; '.join(done.notes)}; "
                        f"the state before them is saved as {saving.save()}."
                    )
            if saving.bad:
                saving.save()
            if first:
                checkpoints.flush()
            with termination.deferred():
                saving.end()
        except Away as error:
            step = learner.step - saving.bad
            raise Outage(f"{error}; the state after step {step} is saved as {saving.save()}.") from None
        except Terminated:
            learner.policy.put_back()
            saving.save()
            if first:
                checkpoints.flush(LAST_SECONDS)
            raise


def _require_signal(learner: Learner, done: StepReport) -> None:
    """Rewards that tell nothing apart from the beginning will hardly do so later, since the policy stays as it is."""
    if learner.updates == 0 and done.skipped and not done.fault and learner.step >= learner.config.train.max_silent_steps:
        raise MarbleError(
            f"None of the {learner.step} steps so far had a signal, so nothing was trained; the last because {'; '.join(done.notes)}. "
            "Choose rewards and prompts on which this model's images differ, or raise train.max_silent_steps."
        )


def _go_on(learner: Learner, checkpoints: Checkpoints, watch: Watch | None = None) -> HistoryParts:
    """From the newest checkpoint of this run, else from another run's weights, else from the beginning. Returns what parts there are of
    the history."""
    watch, parts = watch or Watch(learner.config), HistoryParts()
    name = distributed.on_main(checkpoints.newest)
    with distributed.local_main_first():
        if name:
            for note in load_state(learner, directory := checkpoints.fetch(name), parts):
                _log.warning("Going on may not give the same bits: %s", note)
            watch.load(directory)
        elif learner.config.train.start_from:
            with beginning(learner.config.train.start_from) as place:
                load_weights(learner, place)
    distributed.require_same(learner.step, "the step that they go on from")
    checkpoints.hold(watch.needed)
    return parts


def run_training(config: RunConfig, run_id: str, prompts: Sequence[Prompt], out: Path, watched: Sequence[Prompt] = ()) -> None:
    """The train stage: ``out`` becomes the adapter's directory (the EMA of ``default``), with the history beside it, and with what
    was found at the prompts ``watched``.

    Checkpoints go to the run's prefix in S3, metrics to its MLflow run; a run that was begun before goes on where it was.
    Of several processes (called within ``distributed.processes()``) rank 0 does all this.
    """
    s3 = S3(config.storage.bucket)
    s3.require_bucket()
    with distributed.local_main_first():
        checkpoints = CheckpointStore(Path(config.storage.local) / run_id / "checkpoints", s3, run_id, config.storage)
    if distributed.rank() > 0:
        train(start_learner(config), prompts, checkpoints, lambda _: None, Watch(config, watched))
        return
    with checkpoints.owned():
        _tracked_training(config, run_id, prompts, checkpoints, out, watched)


def _on_the_device(learner: Learner) -> str:
    model = learner.policy.model
    parts = {**model.parts, "scorers": [r for s in learner.scorers if (r := getattr(s, "resident", None))]}
    sizes = resident_bytes(parts, model.device)
    return f"{model.device} holds, in GB: {', '.join(f'{name} {size / 1e9:.2f}' for name, size in sizes.items())}"


def _show_look(tracker: Tracker, config: RunConfig, run_id: str, step: int, found: Look | str) -> None:
    from marble_core.runtime import progress
    from marble_core.tracking.notices import notify_alarms

    if isinstance(found, Look):
        tracker.log_metrics(found.metrics(), step)
        notify_alarms(run_id, step, found.alarms, tracker.links(config.registry.model).get("Run in MLflow", ""))
    progress.emit("train", note=f"step {step}, {found}")


def _tracked_training(
    config: RunConfig,
    run_id: str,
    prompts: Sequence[Prompt],
    checkpoints: CheckpointStore,
    out: Path,
    watched: Sequence[Prompt],
) -> None:
    from marble_core.runtime import progress
    from marble_core.tracking import metric_glossary
    from marble_core.tracking.gpu_hours import gpu_hours_told, gpus_of_stage
    from marble_core.tracking.kubeflow_page import described
    from marble_core.tracking.tracker import Tracker, run_params

    said = {"mlflow.note.content": described("", metric_glossary.as_markdown())}
    tracker = Tracker.start(config.storage.experiment, run_id, run_id, "train", run_params(config), said)
    tracker.send_only_if(checkpoints.confirm)
    tracker.watch_machine()
    if config.balance.weighs_gradients or config.balance.observe:
        progress.emit("train", note=metric_glossary.of_the_progress_line())
    say_missing_gpus("train", -(-config.hardware.gpus // config.train.nodes))
    status = "FAILED"
    counted = ExitStack()
    try:
        used = distributed.world() // config.train.nodes
        counted.enter_context(gpu_hours_told(tracker, gpus_of_stage(used, config.train.nodes)))
        learner = start_learner(config)
        progress.emit("train", note=_on_the_device(learner))
        samples = Samples(tracker, prompts, checkpoints.local.parent)
        told = ProgressReport(config.train.steps, checkpoints.local.parent / PROGRESS)

        def report(done: StepReport) -> None:
            tracker.log_history(learner.history)
            samples.show(learner)
            note = f"{'SKIPPED: ' if done.skipped else ''}{'; '.join(done.notes)}"
            progress.emit("train", done.step, config.train.steps, note, done.metrics)
            told.step(done)

        watch = Watch(config, watched, checkpoints.local.parent / WATCH, partial(_show_look, tracker, config, run_id))
        train(learner, prompts, checkpoints, report, watch, begun=lambda: samples.show(learner))
        _require_ours(checkpoints)
        if learner.step < config.train.steps:
            progress.emit("train", note=f"The result is the checkpoint after step {learner.step}, by what was watched.")
        learner.policy.save_adapter(out, learner.policy.ema)
        write_history(learner.history, out / HISTORY)
        watch.save(out)
        samples.save(out)
        _hand_over(tracker, config, run_id, learner, out)
        status = "RUNNING"  # evaluation and the gate still belong to the run
    except Terminated:
        status = "KILLED"
        raise
    finally:
        counted.close()
        _end(tracker, checkpoints, status)


def _hand_over(tracker: Tracker, config: RunConfig, run_id: str, learner: Learner, out: Path) -> None:
    """What MLflow gets of a finished training. Raises Outage where it has not taken the steps."""
    from marble_core.tracking import registry

    tracker.log_history(learner.history)
    if unsent := tracker.flush(60 * config.storage.max_unsaved_minutes):
        raise Outage(
            f"MLflow has not taken the metrics of {unsent} steps; they are in the run's checkpoint: "
            f"start the run {run_id} again when MLflow answers."
        )
    for path in (out / HISTORY, out / WATCH):
        if path.is_file():
            tracker.log_artifact(path)
    metadata = {"rewards": list(config.reward_names), "method": config.balance.method, "config": config.digest}
    registry.log_adapter(out, portable(config.model.path), tracker.mlflow_run_id, learner.step, metadata)


def _end(tracker: Tracker, checkpoints: CheckpointStore, status: str) -> None:
    try:
        _require_ours(checkpoints)
        tracker.end(status, 3.0 if status == "KILLED" else 20.0)
    except Taken:
        tracker.abandon()  # the run in MLflow is the other process's too


def _require_ours(checkpoints: CheckpointStore) -> None:
    """Raises Taken where another process has the run by now. An S3 that cannot be asked takes it from nobody."""
    try:
        checkpoints.confirm()
    except Taken:
        raise
    except MarbleError as error:
        _log.warning("Whether the run is still this process's cannot be asked: %s", error)
