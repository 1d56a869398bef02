"""What Kubeflow says of a run, in our own words: its stages by name, and whether it was cancelled.

Its task details are the nodes of Argo's workflow: NAME, NAME(0) for an attempt, executor, NAME-driver, the workflow itself. Some have no
name or no state, and where Argo has compressed its nodes there are none at all.
"""

from __future__ import annotations

import re
from typing import Any

from marble_kubeflow.pipelines.settings import STAGES


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


def in_words(run: Any) -> str:
    """The state on one line, with the stage that failed, or that runs."""
    stages, state = stages_of(run), state_of(run)
    failed = [stage for stage, its in stages.items() if its in ("FAILED", "SYSTEM_ERROR")] if state == "FAILED" else []
    now = [stage for stage, its in stages.items() if its in ("RUNNING", "PENDING")] if state in ("RUNNING", "PENDING") else []
    where = f" in {', '.join(failed or now)}" if failed or now else ""
    reason = f": {' '.join(run.error.message.split())}" if run.error and run.error.message else ""
    return f"Run {run.display_name} is {state}{where}{reason}"
