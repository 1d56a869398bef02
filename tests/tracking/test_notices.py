"""What a night tells people: one sentence and a link each for a failure, an alarm, a refusal and a promotion, and no secret."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from chat_endpoint import endpoint
from marble_core import stages
from marble_core.evaluation.gate import NOTHING_NEW, REHEARSED, Decision
from marble_core.evaluation.results import Alarm
from marble_core.runtime import housekeeping
from marble_core.tracking import notices
from marble_core.tracking.outcome import Outcome
from marble_core.types import MarbleError

PAGE = {"Run in MLflow": "https://mlflow.example/#/experiments/1/runs/2"}


class Webhook(list[str]):
    """The texts that a server of Slack's JSON was sent; ``answer`` is what it says to the next."""

    answer: tuple[object, ...] = (200, b"ok")

    def take(self, sent: dict[str, str]) -> tuple[object, ...]:
        assert list(sent) == ["text"]
        self.append(sent["text"])
        return self.answer


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    here = Webhook()
    with endpoint(here.take) as (address, _):
        monkeypatch.setenv("MARBLE_WEBHOOK", f"{address}/SECRET")
        monkeypatch.delenv("MARBLE_KFP_RUN", raising=False)
        yield here


def outcome(promote: bool, verdict: str, reason: str, **options: str) -> Outcome:
    return Outcome("night-7", "marble", Decision(promote, verdict, (reason, "More.")), links=PAGE, **options)  # type: ignore[arg-type]


def test_a_night_sends_a_failure_an_alarm_a_refusal_and_a_promotion_each_one_sentence_and_a_link(
    webhook: Webhook, tmp_path: Path
) -> None:
    with pytest.raises(MarbleError):
        stages.train(tmp_path / "nothing", tmp_path / "out")
    notices.notify_alarms("night-7", 40, [Alarm("mode collapse", "The images became alike.")], PAGE["Run in MLflow"])
    notices.notify_alarms("night-7", 60, [Alarm("mode collapse", "Still alike.")], PAGE["Run in MLflow"])
    notices.notify_outcome(outcome(False, "no gain", "The mean gain is +.01."))
    notices.notify_outcome(outcome(True, "promoted", "The mean gain is +.20.", version="3", alias="champion"))
    failed, *rest = webhook
    assert failed.startswith("A run: train failed. ") and str(tmp_path / "nothing") in failed
    assert rest == [
        f"Run night-7: alarm after step 40, mode collapse: The images became alike. {PAGE['Run in MLflow']}",
        "Run night-7: refused: no gain. The model is not registered: no gain. The mean gain is +.01. " + PAGE["Run in MLflow"],
        f"Run night-7: promoted. Version 3 of marble is registered as champion. The mean gain is +.20. {PAGE['Run in MLflow']}",
    ]


def test_nothing_is_sent_of_a_rehearsal_of_nothing_new_of_an_attempt_that_is_not_the_last_or_without_an_address(
    webhook: Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for verdict in (NOTHING_NEW, REHEARSED):
        notices.notify_outcome(outcome(False, verdict, "So."))
    with monkeypatch.context() as inside, pytest.raises(MarbleError):
        inside.setenv("MARBLE_FAILURE", str(tmp_path / "failure.json"))
        stages.train(tmp_path / "nothing", tmp_path / "out")
    monkeypatch.delenv("MARBLE_WEBHOOK")
    notices.notify("night-7", "anything")
    assert webhook == []


def test_kubeflows_page_is_the_link_where_it_is_known_and_a_login_in_an_error_is_left_out(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARBLE_KFP_RUN", "ab-12")
    monkeypatch.setenv("MARBLE_KUBEFLOW_PAGE", "https://kubeflow.example/pipeline/")
    notices.notify("night-7", "train failed. https://me:PASSWORD@mlflow.example does not answer.", PAGE["Run in MLflow"])
    (text,) = webhook
    assert text.endswith(" https://kubeflow.example/pipeline/#/runs/details/ab-12") and "PASSWORD" not in text


@pytest.mark.parametrize("trouble", [500, 307, "gone"])
def test_a_server_that_takes_no_notice_ends_nothing_and_its_address_is_in_no_log(
    webhook: Webhook, trouble: int | str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(housekeeping, "failures", type(housekeeping.failures)())
    if trouble == "gone":
        monkeypatch.setenv("MARBLE_WEBHOOK", "http://127.0.0.1:9/services/SECRET")
    else:
        webhook.answer = (trouble, b"no", {"Location": "/elsewhere"})
    notices.notify("night-7", "refused: no gain.")
    assert "the notice to MARBLE_WEBHOOK" in caplog.text and "SECRET" not in caplog.text
    assert len(webhook) == (trouble != "gone"), "a redirection is not followed"
