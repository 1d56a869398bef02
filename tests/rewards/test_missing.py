"""An image may have no value: what a scorer says, what it raises, and what it does not end in time."""

import threading

import numpy as np
import pytest
import torch

from marble_core.rewards.scoring import BackgroundScores, score_all
from marble_core.types import MarbleError, NoValue, Prompt
from tiny_rewards import noise

PROMPTS = [Prompt(text, "general") for text in ("one", "two", "three", "four")]
OTHER = Prompt("elsewhere", "ocr")


class Scorer:
    """``answer`` makes what ``score`` returns of the prompts' texts, or raises."""

    name, value_range, background = "mine", (0.0, 1.0), False

    def __init__(self, answer, side=(), **attributes):
        self.answer, self.side = answer, side
        for name, value in attributes.items():
            setattr(self, name, value)

    def applies(self, prompt):
        return prompt.source == "general"

    def self_check(self):
        pass

    def score(self, images_NHWC, prompts):
        return self.answer([prompt.text for prompt in prompts])


def scored(scorer, prompts=PROMPTS):
    return score_all([scorer], noise(len(prompts), 8), prompts)


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        ([1, None, 3, NoValue("no face in it")], {1: "it gave none", 3: "no face in it"}),
        (np.array([1, np.nan, 3, np.nan]), {1: "it gave none", 3: "it gave none"}),
        (np.array([1, None, 3, None], object), {1: "it gave none", 3: "it gave none"}),
        (np.ma.array([1, 2, 3, 4], mask=[False, True, False, True]), {1: "it gave none", 3: "it gave none"}),
        (torch.tensor([1, torch.nan, 3, torch.nan], dtype=torch.bfloat16), {1: "it gave none", 3: "it gave none"}),
    ],
)
def test_none_nan_and_no_value_say_that_an_image_has_none(returned, why):
    table = score_all([Scorer(lambda _: returned)], noise(5, 8), [*PROMPTS[:1], OTHER, *PROMPTS[1:]])
    np.testing.assert_array_equal(table.R_NK[:, 0], [1, np.nan, np.nan, 3, np.nan])
    assert table.missing == {(i + 1, 0): reason for i, reason in why.items()}, "by the image's place in the table"
    assert table.missing_NK[:, 0].tolist() == [False, False, True, False, True]


def test_an_infinite_value_is_a_value_and_a_fault():
    assert scored(Scorer(lambda _: [1, -np.inf, 3, np.inf])).R_NK[:, 0].tolist() == [1, -np.inf, 3, np.inf]


def test_side_values_go_with_the_value_they_stand_beside():
    rows = [(1, 7), None, (3, np.nan), NoValue("blank")]
    table = scored(Scorer(lambda _: rows, ("best",)))
    np.testing.assert_array_equal(table.R_NK[:, 0], [1, np.nan, 3, np.nan])
    np.testing.assert_array_equal(table.side["mine/best"], [7, np.nan, np.nan, np.nan])
    assert scored(Scorer(lambda _: [None] * 4, ("best",))).missing_NK.all()


@pytest.mark.parametrize("background", [False, True])
def test_where_a_scorer_raises_each_image_is_tried_alone_and_that_try_is_used(background):
    tries = []

    def answer(texts):
        tries.append(texts)
        if "two" in texts:
            raise ConnectionResetError("reset by peer")
        return [len(text) for text in texts]

    table = scored(Scorer(answer, background=background))
    np.testing.assert_array_equal(table.R_NK[:, 0], [3, np.nan, 5, 4])
    assert table.missing == {(1, 0): "ConnectionResetError: reset by peer"}
    assert tries == [[p.text for p in PROMPTS], *([p.text] for p in PROMPTS)]
    assert table.notes == (
        "the reward mine failed on 4 images at once (ConnectionResetError: reset by peer), and on 1 of them alone",
    )


def test_a_connection_that_is_reset_once_costs_no_value():
    tries = []

    def answer(texts):
        tries.append(texts)
        if len(tries) == 1:
            raise ConnectionResetError("reset by peer")
        return [0.5] * len(texts)

    assert scored(Scorer(answer), PROMPTS[:1]).R_NK.tolist() == [[0.5]], "one image alone has its second try too"


def test_what_no_image_can_get_right_ends_the_run():
    def answer(texts):
        raise MarbleError("The key is wrong.")

    with pytest.raises(MarbleError, match="The key is wrong"):
        scored(Scorer(answer))


def test_a_scorer_that_is_late_once_is_asked_again_when_it_has_ended():
    over, alone = threading.Event(), threading.Lock()

    def answer(texts):
        assert alone.acquire(blocking=False), "a scorer is asked nothing while it computes"
        first = not over.is_set()
        assert over.wait(60)
        alone.release()
        return [0.0 if first else 1.0] * len(texts)

    scorer = Scorer(answer, timeout=0.05)
    assert set(scored(scorer).missing.values()) == {"it has not ended scoring 4 images after 0.05 s"}
    over.set()
    scorer.timeout = 60
    assert scored(scorer).R_NK[:, 0].tolist() == [1, 1, 1, 1]


def test_a_late_part_of_a_step_costs_only_its_own_images():
    over = threading.Event()
    scorer = Scorer(lambda texts: [1.0 if "one" in texts or over.wait(60) else 0.0] * len(texts), background=True, timeout=0.2)
    ahead = BackgroundScores([scorer], PROMPTS)
    for part in np.split(noise(4, 8), 2):
        ahead.add(part)
    table = score_all([scorer], noise(4, 8), PROMPTS, ahead)
    over.set()
    np.testing.assert_array_equal(table.R_NK[:, 0], [1, 1, np.nan, np.nan])
    assert set(table.missing) == {(2, 0), (3, 0)}
