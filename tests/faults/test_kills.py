"""A run that is killed goes on to the same bits: kill -9 at random moments, in steps, in saving, in uploading."""

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load

from killable_training import PATIENCE, Left, Training, random_moments, status_of
from oracles import relative_error

pytestmark = pytest.mark.faults

STEPS, MOMENTS = 24, 35  # a step has some 30 moments before and after a write


@pytest.fixture(scope="module")
def undisturbed(services_of_module: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Left, Left, float]:
    """What is left of a run at step 6 and at its end, and how long its step takes."""
    training = Training("undisturbed", tmp_path_factory.mktemp("undisturbed"), f"train.steps={STEPS}")
    assert training.begun.wait(PATIENCE), training.said
    began = time.monotonic()
    assert training.end() == [0], training.said
    return Left.of("undisturbed", 6), Left.of("undisturbed"), (time.monotonic() - began) / STEPS


@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.deep)])
def test_kills_leave_weights_optimizer_and_metrics_of_an_undisturbed_run(undisturbed, tmp_path: Path, kills: int) -> None:
    _, whole, step_seconds = undisturbed
    moments, delays = random_moments(7, kills, MOMENTS), random.Random(11)
    run_id, steps = f"killed-{kills}-times", f"train.steps={STEPS}"
    for kill in range(kills):
        if kill % 2:
            training = Training(run_id, tmp_path / "run", steps, kill_at=moments[kill])
        else:
            training = Training(run_id, tmp_path / "run", steps)
            training.kill_within(1.5 * step_seconds, delays.random())
        assert training.end() == [-9], f"attempt {kill}: {training.said}"
    last = Training(run_id, tmp_path / "run", steps)
    assert last.end() == [0], last.said
    left = Left.of(run_id)
    assert left.tensors == whole.tensors
    assert {n: v for n, v in left.metrics.items() if v != whole.metrics.get(n)} == {}
    assert left == whole


def test_sigterm_drops_the_unfinished_step_and_has_the_state_before_it_on_s3_within_30_seconds(
    services, tmp_path: Path
) -> None:
    training = Training("terminated", tmp_path, "train.steps=50", "train.checkpoint_every=50", pace=1.0, begins_after=2)
    assert training.begun.wait(PATIENCE), training.said
    threading.Event().wait(0.5)  # in the third step
    training.processes[0].terminate()
    began = time.monotonic()
    assert training.end() == [128 + signal.SIGTERM]
    assert time.monotonic() - began < 30
    left = Left.of("terminated")
    assert [line["step"] for line in left.history] == list(range(1, left.state["step"] + 1)) and left.state["step"] >= 1
    # What MLflow had no time to take is in the checkpoint, and a resume sends it: nothing is missing in between, nothing double.
    sent = [step for step, _ in left.metrics["skipped"]]
    assert sent == list(range(1, len(sent) + 1)) and len(sent) <= left.state["step"]
    again = Training("terminated", tmp_path, f"train.steps={left.state['step'] + 1}", "train.checkpoint_every=50")
    assert again.end() == [0], again.said
    assert [step for step, _ in Left.of("terminated").metrics["skipped"]] == list(range(1, left.state["step"] + 2))


def test_of_two_runs_with_one_id_at_once_one_goes_on_and_the_other_says_why_it_does_not(undisturbed, tmp_path: Path) -> None:
    at_6, _, _ = undisturbed
    pair = [Training("same", tmp_path / machine, "train.steps=6") for machine in ("a", "b")]
    codes = [training.end()[0] for training in pair]
    assert sorted(codes) == [0, 2], [training.said for training in pair]
    (refused,) = [training for training, code in zip(pair, codes, strict=True) if code == 2]
    assert "The run same is being worked on by process" in refused.said and "\n" not in refused.said
    left = Left.of("same")
    assert left.tensors == at_6.tensors and left.history == at_6.history and left.state == at_6.state


@pytest.mark.deep  # two trainings each: five minutes in all
@pytest.mark.parametrize("nth", range(10))
def test_an_owner_that_was_stopped_and_wakes_after_a_takeover_deletes_doubles_and_ends_nothing_of_the_new_owners(
    undisturbed, tmp_path: Path, nth: int
) -> None:
    at_6, _, step_seconds = undisturbed
    run_id, moment = f"woken-{nth}", random.Random(nth).random()
    sleeper = Training(run_id, tmp_path / "a", "train.steps=6", patience=3.0)
    assert sleeper.begun.wait(PATIENCE), sleeper.said
    threading.Event().wait(6 * step_seconds * moment)
    pid = sleeper.processes[0].pid
    assert pid is not None
    with contextlib.suppress(ProcessLookupError):  # it may have been done before that moment
        os.kill(pid, signal.SIGSTOP)
    heir = Training(run_id, tmp_path / "b", "train.steps=6", patience=3.0)
    assert heir.end() == [0], heir.said
    status = status_of(run_id)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    assert sleeper.end()[0] in (0, 2), sleeper.said  # 0: it had been done
    left = Left.of(run_id)
    assert left.tensors == at_6.tensors and left.history == at_6.history and left.state == at_6.state
    expected = {name: [point for point in points if point[0] <= 6] for name, points in at_6.metrics.items()}
    assert left.metrics == {name: points for name, points in expected.items() if points}
    assert status_of(run_id) == status == "RUNNING", "of which evaluation and gate are not done"


def test_of_two_processes_one_is_killed_and_the_run_goes_on_with_two_to_the_bit_or_with_one_to_rounding(
    services, tmp_path: Path
) -> None:
    steps = "train.steps=6"
    whole = Training("two", tmp_path / "two", steps, count=2)
    assert whole.end() == [0, 0], whole.said
    expected = Left.of("two")
    for run_id, killed, again in (("one-of-two", 1, 2), ("two-then-one", 0, 1)):
        training = Training(run_id, tmp_path / run_id, steps, count=2, pace=0.5)
        training.kill_after(1.8, rank=killed)
        codes = training.end()
        assert codes[killed] == -9 and codes[1 - killed] not in (0, -9), training.said
        resumed = Training(run_id, tmp_path / run_id, steps, count=again)
        assert resumed.end() == [0] * again, resumed.said
        left = Left.of(run_id)
        if again == 2:
            assert left == expected
        else:
            assert [h["step"] for h in left.history] == list(range(1, 7))
            # Over all weights, as in test_launch: AdamW's first steps go by signs, so rounding near 0 shows in single ones. Six steps
            # of one process against six of two differ by 9e-5, and in single weights by 9e-4.
            assert relative_error(load(left.tensors), load(expected.tensors)) < 3e-4
