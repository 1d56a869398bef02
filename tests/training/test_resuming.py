"""A run that stopped goes on to the same bits, and only as the run that it was."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from builders import learner, prompts, weights
from marble_core.checkpoints import CheckpointStore
from marble_core.training import loop, saving
from marble_core.types import MarbleError


def test_faults_in_a_row_stop_the_run_with_one_sentence(tmp_path):
    one = learner("train.max_bad_steps=2", "train.steps=9")
    one.scorers[1].score = lambda images, _: np.full(len(images), np.nan)
    with pytest.raises(MarbleError, match="2 steps in a row were skipped for a fault"):
        loop.train(one, prompts(), CheckpointStore(tmp_path, None, "run"), lambda _: None)


def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_bits(tmp_path):
    whole = learner("train.steps=4")
    loop.train(whole, prompts(), CheckpointStore(tmp_path / "whole", None, "run"), lambda _: None)

    def stop_after_two(report):
        if report.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(learner("train.steps=4"), prompts(), CheckpointStore(tmp_path / "parts", None, "run"), stop_after_two)
    resumed = learner("train.steps=4")
    loop.train(resumed, prompts(), CheckpointStore(tmp_path / "parts", None, "run"), lambda _: None)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True))
    assert all(torch.equal(whole.policy.ema[n], e) for n, e in resumed.policy.ema.items())
    kept = {n: v for n, v in whole.history[-1]["metrics"].items() if not n.startswith(("time/", "images_per"))}
    again = {n: v for n, v in resumed.history[-1]["metrics"].items() if not n.startswith(("time/", "images_per"))}
    assert json.dumps(kept) == json.dumps(again) and len(resumed.history) == 4


@pytest.mark.parametrize(
    "change", ["balance.method=equal", "optimizer.lr=0.5", "rewards=[{name: pickscore}, {name: clipscore}, {name: ocr}]"]
)
def test_a_setting_that_makes_another_run_of_it_is_one_sentence_and_one_that_does_not_is_taken(change, tmp_path):
    loop.train(learner("train.steps=1"), prompts(), CheckpointStore(tmp_path, None, "run"), lambda _: None)
    with pytest.raises(
        MarbleError, match=r"The run was begun with (balance.method|reward_names|optimizer.lr) = .*Set it back, or"
    ):
        loop.train(learner("train.steps=2", change), prompts(), CheckpointStore(tmp_path, None, "run"), lambda _: None)
    free = learner("train.steps=2", "loss.micro_batch=6", "storage.keep_last=1", "registry.margin=0.2")
    loop.train(free, prompts(), CheckpointStore(tmp_path, None, "run"), lambda _: None)
    assert [line["step"] for line in free.history] == [1, 2]


def test_a_checkpoint_is_due_by_time_as_well_as_by_steps(tmp_path, monkeypatch):
    """A pod that is cancelled has no time to save: what is lost must not depend on how long a step takes."""
    seconds, saved = [0.0], []
    monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=lambda: seconds[0]))

    class Kept:
        def newest(self):
            return None

        def save(self, step, write):
            saved.append(step)

        def check(self):
            pass

        def flush(self, seconds=None):
            return True

        def hold(self, steps):
            pass

    def report(done):
        seconds[0] += 100

    loop.train(learner("train.steps=7", "train.checkpoint_every=99", "train.checkpoint_minutes=5"), prompts(), Kept(), report)
    assert saved == [4, 7]
