"""What Kubeflow says of a run, in our own words: its stages by name, and whether it was cancelled.

Its task details are the nodes of Argo's workflow: NAME, NAME(0) for an attempt, executor, NAME-driver, the workflow itself. Some have no
name or no state, and where Argo has compressed its nodes there are none at all.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from marble_kubeflow.pipelines.settings import STAGES

FINAL = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
PATIENCE = 60.0  # seconds for which a pod that waits is nothing to speak of


def state_of(run: Any) -> str:
    """Kubeflow's state, but CANCELED for a run that ended FAILED because somebody ended it."""
    history = [each.state for each in run.state_history or ()]
    return "CANCELED" if run.state == "FAILED" and "CANCELING" in history else str(run.state)


def stages_of(run: Any) -> dict[str, str]:
    """The states of the stages that have begun, in their order. The node of the stage's last attempt says its state."""
    details = (run.run_details and run.run_details.task_details) or ()
    found = {re.sub(r"\(\d+\)$", "", task.display_name or ""): task.state for task in details if task.state}
    own = {task.display_name: task.state for task in details if task.display_name in STAGES and task.state}
    return {stage: str(own.get(stage, found.get(stage))) for stage in STAGES if stage in found}


def _going_on(run: Any) -> list[str]:
    return [stage for stage, its in stages_of(run).items() if its in ("RUNNING", "PENDING")]


def stage_of(run: Any) -> str:
    """The stage that goes on, else the last that has begun; empty where Kubeflow names none."""
    return next(iter(_going_on(run)), next(reversed(stages_of(run)), ""))


def waits(run: Any, now: datetime | None = None) -> str:
    """The sentence on a pod that has waited for over a minute; empty where none does. Kubeflow says that it waits and not why."""
    details = (run.run_details and run.run_details.task_details) or ()
    since = min((task.start_time for task in details if task.state == "PENDING" and task.start_time), default=None)
    if run.state in FINAL or since is None or ((now or datetime.now(UTC)) - since).total_seconds() < PATIENCE:
        return ""
    stage = next(iter(_going_on(run)), "")
    own = f",marble/stage={stage}" if stage else ""
    return (
        f"The pod of {stage or 'the next stage'} has waited since {since.astimezone(UTC):%H:%M} UTC. An image, a GPU, a quota or a secret may "
        f"be missing: kubectl -n NAMESPACE describe pods -l pipeline/runid={run.run_id}{own} says which."
    )


def in_words(run: Any) -> str:
    """The state on one line, with the stage that failed, or that runs; on a second one what a pod waits for."""
    stages, state = stages_of(run), state_of(run)
    failed = [stage for stage, its in stages.items() if its in ("FAILED", "SYSTEM_ERROR")] if state == "FAILED" else []
    now = _going_on(run) if state in ("RUNNING", "PENDING") else []
    where = f" in {', '.join(failed or now)}" if failed or now else ""
    reason = f": {' '.join(run.error.message.split())}" if run.error and run.error.message else ""
    line = f"Run {run.display_name} is {state}{where}{reason}"
    return f"{line}\n{waiting}" if (waiting := waits(run)) else line
