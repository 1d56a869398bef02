"""Rewards that fail now and then, and rewards that say nothing, through whole trainings."""

import base64
import hashlib
import json
import threading

import numpy as np
import pytest
import torch

from builders import Channel, learner, prompts, weights
from chat_endpoint import endpoint
from marble_core.checkpoints import CheckpointStore
from marble_core.rewards.endpoint import Endpoint
from marble_core.training import loop
from marble_core.types import MarbleError, NoValue

RARELY = 50  # one image in so many
PATIENCE = 4.0
STEPS, IMAGES = 40, 12
TINY = ["rollout.prompts=3", "rollout.images_per_prompt=4", "rollout.steps=2", "loss.timesteps=1", f"loss.micro_batch={IMAGES}"]


def digest(image):
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


class Fails(Channel):
    """Raises for one image in fifty, whoever it comes with."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.failed = []

    def score(self, images_NHWC, of):
        bad = [digest(image) for image in images_NHWC if int(digest(image), 16) % RARELY == 0]
        if bad:
            if len(images_NHWC) == 1:
                self.failed += bad
            raise RuntimeError("cannot read this image")
        return super().score(images_NHWC, of)


class Served(Channel):
    """Computed elsewhere, where one request in the middle is never answered."""

    def __init__(self, url, *arguments):
        super().__init__(*arguments)
        self.endpoint = Endpoint(url, "the reward 'pickscore'", "set KEY", patience=PATIENCE, workers=4)

    def score(self, images_NHWC, of):
        bodies = [{"image": base64.b64encode(image.tobytes()).decode(), "shape": image.shape} for image in images_NHWC]
        answers = self.endpoint.ask(bodies)
        return [one if isinstance(one, NoValue) else json.loads(one) for one in answers]


class Lacks(Channel):
    """Gives no value for certain images."""

    def __init__(self, without, *arguments):
        super().__init__(*arguments)
        self.without = set(without)

    def score(self, images_NHWC, of):
        values = super().score(images_NHWC, of)
        return [None if digest(image) in self.without else value for image, value in zip(images_NHWC, values, strict=True)]


def trained(directory, scorers):
    names = "rewards=[{name: clipscore, max_missing: 0.3}, {name: pickscore, max_missing: 0.3}, {name: ocr}]"
    one = learner(names, f"train.steps={STEPS}", "train.checkpoint_every=100", *TINY, scorers=scorers)
    loop.train(one, prompts(), CheckpointStore(directory, None, "run"), lambda _: None)
    return one


def logged(one, name):
    return sum(line["metrics"].get(name, 0) for line in one.history)


def test_a_training_whose_scorers_fail_is_bit_equal_to_one_whose_scorers_give_no_value_for_those_images(tmp_path):
    over, served, slept = threading.Event(), [], []

    def answer(request):
        image = np.frombuffer(base64.b64decode(request["image"]), np.uint8).reshape(request["shape"])
        if not slept and len(served) == 17 * IMAGES + 5:
            slept.append(digest(image))
        if digest(image) in slept:
            over.wait(60)
        served.append(digest(image))
        return 200, json.dumps(Channel("pickscore", 1).score(image[None], None)[0]).encode()

    fails = Fails("clipscore", 0)
    with endpoint(answer) as (url, _):
        failing = trained(tmp_path / "failing", (fails, Served(url, "pickscore", 1), Channel("ocr", 2, "ocr")))
        over.set()
    lacking = trained(
        tmp_path / "lacking",
        (Lacks(fails.failed, "clipscore", 0), Lacks(slept, "pickscore", 1), Channel("ocr", 2, "ocr")),
    )
    assert len(fails.failed) > 5 and len(slept) == 1
    for one in (failing, lacking):
        assert logged(one, "missing/clipscore") == len(fails.failed) and logged(one, "missing/pickscore") == 1
        assert logged(one, "missing/ocr") == 0 and one.updates == STEPS
    assert all(torch.equal(a, b) for a, b in zip(weights(failing).values(), weights(lacking).values(), strict=True))
    assert all(torch.equal(failing.policy.ema[n], e) for n, e in lacking.policy.ema.items())
    said = [note for line in failing.history for note in line["notes"]]
    assert sum("reward pickscore has no value for 1 of 12 images" in note and "too slow" in note for note in said) == 1
    assert any("reward clipscore has no value" in note and "RuntimeError: cannot read this image" in note for note in said)


def test_a_reward_that_lacks_too_many_values_stops_the_run_and_says_why(tmp_path):
    one = learner("train.steps=9", "train.max_bad_steps=2", "train.checkpoint_every=1")
    score, calls = one.scorers[1].score, []

    def fails_from_the_third_step(images, of):
        calls.append(len(images))
        if len(calls) > 2:
            raise ConnectionRefusedError("nobody there")
        return score(images, of)

    one.scorers[1].score = fails_from_the_third_step
    with pytest.raises(MarbleError, match=r"2 steps in a row .*saved as .*step-000002") as caught:
        loop.train(one, prompts(), CheckpointStore(tmp_path, None, "run"), lambda _: None)
    assert "reward pickscore has no value for 24 of 24 images, more than its max_missing = 0.1" in str(caught.value)
    assert "ConnectionRefusedError: nobody there (24 times)" in str(caught.value)
    assert one.history[-1]["metrics"]["missing/pickscore"] == 24, "a skipped step is counted too"


def silent(one, until=10**9):
    """Rewards that tell nothing apart in the first so many steps."""
    for scorer in one.scorers:
        scorer.score = lambda images, of, score=scorer.score: (
            score(images, of) if one.step >= until else np.full(len(images), 0.25)
        )
    return one


def test_steps_without_signal_from_the_beginning_stop_the_run_and_say_what_the_rewards_were(tmp_path):
    one = silent(learner("train.steps=20", "train.max_silent_steps=3"))
    with pytest.raises(MarbleError, match="None of the 3 steps so far had a signal") as caught:
        loop.train(one, prompts(), CheckpointStore(tmp_path, None, "run"), lambda _: None)
    assert "clipscore is 0.25 for all 24 images" in str(caught.value) and one.step == 3
    counts = {name: value for name, value in one.history[0]["metrics"].items() if name.startswith("no_signal/")}
    assert counts == {f"no_signal/{name}/{source}": 2.0 for name in ("clipscore", "pickscore") for source in
                      ("general", "ocr", "geneval")} | {"no_signal/ocr/ocr": 2.0}  # fmt: skip


def test_a_signal_that_comes_in_time_lets_the_run_go_on_and_later_silence_is_no_end(tmp_path):
    one = silent(learner("train.steps=6", "train.max_silent_steps=3"), until=2)
    for scorer in one.scorers:
        scorer.score = lambda images, of, score=scorer.score: score(images, of) if one.step < 3 else np.full(len(images), 0.25)
    loop.train(one, prompts(), CheckpointStore(tmp_path, None, "run"), lambda _: None)
    assert (one.step, one.updates) == (6, 1)
