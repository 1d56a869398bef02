"""The runs that a schedule has started, also before it was changed: Kubeflow cannot change one, so that an update makes another.

The description of the new one names those whose place it takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from typing import Any

from kfp_server_api import V2beta1RecurringRun, V2beta1Run

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MOST = 20  # of the schedules before; their ids are a kilobyte


def succession(replaced: Iterable[V2beta1RecurringRun]) -> str:
    """The description of a schedule that takes the place of these; empty where there are none."""
    ids = [each for schedule in replaced for each in lineage(schedule)]
    return f"Takes the place of {', '.join(ids[:MOST])}" if ids else ""


def lineage(schedule: V2beta1RecurringRun) -> list[str]:
    """Its id, and those of the schedules before it."""
    return [schedule.recurring_run_id, *UUID.findall(schedule.description or "")]


def runs_of_schedule(cluster: Any, name: str, limit: int) -> list[V2beta1Run]:
    """The newest runs that the schedule of that name has started. Raises MarbleError where there is none of that name."""
    ids = {each for schedule in cluster.schedule(name) for each in lineage(schedule)}
    return list(islice((run for run in cluster.each_run() if run.recurring_run_id in ids), limit))
