"""How far a training is, for programs: the file, and the status that Kubeflow's own SDK sends to a server that reads it strictly."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubeflow_trainer_api.models import TrainerV1alpha1TrainerStatus

from chat_endpoint import endpoint
from marble_core.config.stage_files import PROGRESS as FILE
from marble_core.runtime import housekeeping, pace
from marble_core.training import progress_report
from marble_core.training.progress_report import ProgressReport
from marble_core.types import StepReport
from waiting import eventually

METRICS = {
    "reward/ocr/mean": 0.61, "reward/ocr/std": 0.2, "reward/clipscore/mean": float("nan"), "cosine/worst": 0.4, "held_out/worst": -0.02, "cosine/last_worst": 0.1
}  # fmt: skip


@pytest.fixture(autouse=True)
def sdk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kubeflow's SDK, which remembers when it sent last, and our own pause, both as in a new process."""
    from kubeflow.trainer.backends.kubernetes import utils

    (tmp_path / "token").write_text("token-of-the-pod")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(tmp_path / "token"))
    for name, value in {"_last_update_time": -1e9, "_cached_token": None, "_http_session": None}.items():
        monkeypatch.setattr(utils, name, value)
    monkeypatch.setattr(housekeeping, "failures", Counter())


class Trainer(list[TrainerV1alpha1TrainerStatus]):
    """The statuses that were sent, as Kubeflow Trainer's own model reads them."""

    answer: tuple[int, bytes] | None = (200, b"{}")

    def take(self, sent: dict[str, Any]) -> tuple[int, bytes] | None:
        assert list(sent) == ["trainerStatus"]
        status = TrainerV1alpha1TrainerStatus.from_dict(sent["trainerStatus"])
        assert status is not None and set(sent["trainerStatus"]) == set(status.to_dict()), "no field that it does not know"
        self.append(status)
        return self.answer


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainer]:
    here = Trainer()
    with endpoint(here.take) as (address, asked):
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", f"{address}/apis/trainer.kubeflow.org/v1alpha1/x/status")
        yield here
        assert all(headers["Authorization"] == "Bearer token-of-the-pod" for _, headers, _ in asked)


def done(step: int, metrics: dict[str, float] = METRICS) -> StepReport:
    return StepReport(step=step, metrics=metrics, notes=(), skipped=False)


def test_the_file_says_percentage_time_left_rewards_and_the_worst_cosine_that_is_honest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBEFLOW_TRAINER_SERVER_URL", raising=False)
    now = iter(1000.0 + 30 * n for n in range(9))
    monkeypatch.setattr(progress_report.time, "time", lambda: next(now))
    report = ProgressReport(40, tmp_path / "run" / FILE)
    report.step(done(1))
    assert json.loads((tmp_path / "run" / FILE).read_text())["seconds_left"] is None, "of one step no pace is known"
    for step in (2, 3, 4):
        report.step(done(step))
    assert json.loads((tmp_path / "run" / FILE).read_text()) == {
        "time": 1090.0, "step": 4, "steps": 40, "percent": 10, "seconds_left": 36 * 30, "rewards": {"ocr": 0.61}, "worst_cosine": -0.02
    }  # fmt: skip
    report.step(done(5, {"cosine/worst": 0.4}))
    assert json.loads((tmp_path / "run" / FILE).read_text())["worst_cosine"] is None, "that of its own batch is none"
    assert [path.name for path in (tmp_path / "run").iterdir()] == [FILE]


def test_in_a_trainjob_kubernetes_is_told_by_kubeflows_sdk_and_not_at_each_step(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = ProgressReport(4, tmp_path / FILE)
    for step in (1, 2):
        report.step(done(step))
    assert eventually(lambda: len(trainer) == 1)
    assert report._sending
    report._sending.join()
    monkeypatch.setattr(progress_report.time, "monotonic", lambda: report._next)  # the pause is over
    from kubeflow.trainer.backends.kubernetes import utils

    monkeypatch.setattr(utils, "_last_update_time", -1e9)
    report.step(done(3))
    assert eventually(lambda: len(trainer) == 2)
    first, second = trainer
    assert (first.progress_percentage, first.estimated_remaining_seconds) == (25, None)
    assert second.progress_percentage == 75 and second.estimated_remaining_seconds is not None
    assert {each.name: each.value for each in second.metrics or ()} == {"reward/ocr": "0.61", "worst_cosine": "-0.02"}
    report._sending.join()
    assert housekeeping.failures == Counter()


@pytest.mark.parametrize("trouble", ["refuses", "hangs up", "gone", "read-only"])
def test_a_status_or_a_file_that_cannot_be_written_ends_nothing_and_is_said_once(
    trouble: str, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    what = "the status of the TrainJob"
    if trouble == "gone":
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", "http://127.0.0.1:9/status")
    elif trouble == "read-only":
        (tmp_path / "file").write_text("in the way")
        what = "the progress file"
    else:
        trainer.answer = (503, b"later") if trouble == "refuses" else None
    report = ProgressReport(4, tmp_path / "file" / FILE if trouble == "read-only" else tmp_path / FILE)
    for step in (1, 2, 3):
        report.step(done(step))
        if report._sending:
            report._sending.join()
        report._next = 0
    assert housekeeping.failures[what] == 3 and caplog.text.count(what) == 1


def test_a_server_that_does_not_answer_holds_up_no_step(trainer: Trainer, tmp_path: Path) -> None:
    over = threading.Event()
    take = trainer.take

    def late(sent: dict[str, Any]) -> tuple[int, bytes] | None:
        over.wait(30)
        return take(sent)

    trainer.take = late  # type: ignore[method-assign]
    with endpoint(late) as (address, _):
        report = ProgressReport(400, tmp_path / FILE)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBEFLOW_TRAINER_SERVER_URL", f"{address}/status")
            for step in range(1, 101):
                report._next = 0
                report.step(done(step))
        assert json.loads((tmp_path / FILE).read_text())["step"] == 100 and not over.is_set()
        over.set()
        assert report._sending
        report._sending.join()
    assert len(trainer) == 1, "while one is on its way no other is sent"


def test_the_pace_is_that_of_the_newest_steps() -> None:
    times = [0.0, 500.0, *(500.0 + 10 * n for n in range(1, 31))]
    assert pace.seconds_left(times, 31, 41, times[-1]) == 100
    assert pace.seconds_left(times, 31, 41, times[-1] + 4) == 96 and pace.seconds_left(times, 31, 41, times[-1] + 99) == 90
