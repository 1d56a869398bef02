"""Notices for people: a stage that failed, an alarm, a refusal, a promotion. Each is one sentence and a link.

They go to the address in MARBLE_WEBHOOK, which belongs into a secret: Slack's incoming webhooks, and whatever takes the same JSON
(Mattermost, Rocket.Chat, Discord below ``/slack``). Without it none is sent. A notice that nobody takes ends no work.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from marble_core.config.stage_files import read_prepared
from marble_core.evaluation.gate import NOTHING_NEW, REHEARSED
from marble_core.runtime.environment import FAILURE, WEBHOOK
from marble_core.runtime.housekeeping import housekeeping
from marble_core.tracking.kubeflow_page import kubeflow_page
from marble_core.types import MarbleError, without_secrets

if TYPE_CHECKING:
    from marble_core.evaluation.results import Alarm
    from marble_core.tracking.outcome import Outcome

_told: set[tuple[str, str]] = set()  # kinds of alarms by run: one notice of each, however often it is raised
SECONDS = 10.0  # for a server that does not answer
LONGEST = 600  # characters of a sentence
P = ParamSpec("P")
R = TypeVar("R")


def notify(run_id: str, sentence: str, link: str = "") -> None:
    """One message: "Run RUN: SENTENCE LINK". The link is the run's page in Kubeflow, where that is known, else the one given."""
    if address := os.environ.get(WEBHOOK):
        said = without_secrets(" ".join(sentence.split()))[:LONGEST]
        text = " ".join(filter(None, (f"Run {run_id}:" if run_id else "A run:", said, kubeflow_page() or link)))
        housekeeping("the notice to MARBLE_WEBHOOK", lambda: _post(address, text))


def notify_alarms(run_id: str, step: int, alarms: Sequence[Alarm], link: str = "") -> None:
    """One message on the kinds of alarms that this process has not told of yet."""
    new = [alarm for alarm in alarms if (run_id, alarm.kind) not in _told]
    _told.update((run_id, alarm.kind) for alarm in new)
    if new:
        notify(run_id, f"alarm after step {step}, {'; '.join(f'{alarm.kind}: {alarm.text}' for alarm in new)}", link)


def notify_outcome(outcome: Outcome) -> None:
    """What became of the model, with the deciding reason. Of a rehearsal, and where there was nothing to train on, none is sent."""
    if outcome.decision.verdict not in (NOTHING_NEW, REHEARSED):
        sentence = f"{outcome.decision.summary}. {outcome.sentence} {outcome.decision.reasons[0]}"
        notify(outcome.run_id, sentence, outcome.links.get("Run in MLflow", ""))


def failures_noticed(stage: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Around a stage's function: a notice where it ends with an error. Of a stage that starts its work again, only the last one
    counts; a stage that was told to end, by SIGTERM, has not failed."""

    def around(work: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(work)
        def noticed(*arguments: P.args, **options: P.kwargs) -> R:
            try:
                return work(*arguments, **options)
            except Exception as error:
                if not os.environ.get(FAILURE):  # else the parent decides whether this was the last attempt
                    said = str(error) if isinstance(error, MarbleError) else f"{type(error).__name__}, see its log."
                    notify(_run_id(*arguments), f"{stage} failed. {said}")
                raise

        return noticed

    return around


def _run_id(*arguments: object) -> str:
    """Of the prepared directory that all stages but prepare begin with; empty where it cannot be read."""
    try:
        return read_prepared(arguments[0])[1] if isinstance(arguments[0], Path) else ""
    except (MarbleError, OSError, ValueError):
        return ""


def _post(address: str, text: str) -> None:
    """The address is a secret, so that it stands in no error."""
    import requests

    try:
        answer = requests.post(address, json={"text": text}, timeout=SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        raise MarbleError(f"its server cannot be reached ({type(error).__name__}).") from None
    if not answer.ok or answer.is_redirect:
        raise MarbleError(f"its server answered {answer.status_code}.")
