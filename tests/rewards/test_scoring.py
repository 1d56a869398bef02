"""The reward table: masks, side values, faults, time-outs, loading by name, the demo's preset."""

import subprocess
import sys
import threading
from random import Random

import numpy as np
import pytest

from marble_core.algorithm.metrics import reward_metrics
from marble_core.config.loading import load_config
from marble_core.config.schema import RewardConfig
from marble_core.demo.draw import draw
from marble_core.demo.prompts import entries
from marble_core.rewards.clip import load_clip
from marble_core.rewards.clipscore import ClipScore
from marble_core.rewards.pickscore import PickScore
from marble_core.rewards.registry import load_scorers
from marble_core.rewards.scoring import score_all
from marble_core.types import SOURCES, MarbleError, Prompt, PromptBatch, RewardTable
from tiny_rewards import noise, save_clip

SHAPES_DETECTOR = "marble_core.demo.shapes:ShapesDetector"
GENERAL = Prompt("one", "general")


class Reward:
    """A scorer in memory: ``score`` is a function of a prompt."""

    value_range = (0.0, 1.0)

    def __init__(self, name, values, wanted=lambda prompt: True):
        self.name, self.values, self.applies = name, values, wanted

    def score(self, images_NHWC, prompts):
        return np.array([self.values(prompt) for prompt in prompts])

    def self_check(self):
        pass


def test_nan_stands_exactly_where_a_reward_does_not_apply():
    prompts = [Prompt("one", "general"), Prompt("two", "ocr", {"text": "TWO"}), Prompt("three", "general")]
    rewards = [
        Reward("every", lambda p: len(p.text)),
        Reward("quoted", lambda p: 9, lambda p: p.metadata.get("text") is not None),
    ]
    rewards[1].background = True
    table = score_all(rewards, noise(3, 8), prompts)
    assert table.names == ("every", "quoted") and table.R_NK.dtype == np.float64
    np.testing.assert_array_equal(table.R_NK, [[3, np.nan], [3, 9], [5, np.nan]])


def test_side_values_stand_beside_the_rewards_under_the_same_keys_whatever_the_prompts():
    reward = Reward("r", lambda p: (len(p.text), 7, -1), lambda p: p.source == "ocr")
    reward.side = ("best", "worst")
    prompts = [Prompt("abc", "ocr"), GENERAL]
    mine, others = score_all([reward], noise(2, 8), prompts), score_all([reward], noise(1, 8), [GENERAL])
    assert list(mine.side) == list(others.side) == ["r/best", "r/worst"]
    whole = RewardTable.concatenate([mine, others])
    np.testing.assert_array_equal(whole.R_NK, [[3], [np.nan], [np.nan]])
    np.testing.assert_array_equal(whole.side["r/worst"], [-1, np.nan, np.nan])
    assert whole.names == ("r",) and whole.means() == {"r": 3} and whole.side_means() == {"r/best": 7, "r/worst": -1}
    logged = reward_metrics(whole, PromptBatch((*prompts, GENERAL), 1, 0, 0))
    assert logged == {"reward/r/mean": 3, "reward/r/std": 0, "reward/r/ocr": 3, "side/r/best": 7, "side/r/worst": -1}


def test_a_scorer_that_names_side_values_and_gives_none_is_named():
    reward = Reward("r", lambda p: 1.0)
    reward.side = ("best",)
    with pytest.raises(MarbleError, match=r"'r' returned shape \(2,\), not one number and best beside it for each of 2 images"):
        score_all([reward], noise(2, 8), [GENERAL] * 2)


def test_each_prompt_of_a_step_is_encoded_once_for_all_its_images_and_scorers(tmp_path, monkeypatch):
    checkpoint = save_clip(tmp_path)
    clip, texts = load_clip(checkpoint), []
    forward = clip.model.get_text_features
    monkeypatch.setattr(
        clip.model, "get_text_features", lambda **inputs: texts.extend(inputs["input_ids"]) or forward(**inputs)
    )
    prompts = [Prompt(text, "general") for text in ("a red cat", "the sea at night") for _ in range(12)]
    score_all([ClipScore(checkpoint), PickScore(checkpoint)], noise(24, 32), prompts)
    assert len(texts) == 2


@pytest.mark.parametrize("first", ["a", "b"])
def test_the_table_does_not_depend_on_which_scorer_ends_first(first):
    ended = {name: threading.Event() for name in "ab"}

    def scorer(name):
        def value(prompt):
            assert name == first or ended[first].wait(30)
            ended[name].set()
            return ord(name)

        return Reward(name, value)

    both = [scorer("a"), scorer("b")]
    both[0].background = both[1].background = True
    np.testing.assert_array_equal(score_all(both, noise(1, 8), [GENERAL]).R_NK, [[ord("a"), ord("b")]])


HANGING = """
import ctypes, sys
import numpy as np
from marble_core.rewards.scoring import score_all
from marble_core.rewards.ocr import Ocr
from marble_core.types import MarbleError, Prompt

class Hanging:
    name, value_range, applies = "stuck", (0, 1), lambda self, prompt: True

    def score(self, images_NHWC, prompts):
        ctypes.CDLL(None).pause()

scorer = Ocr(reader=lambda images: ctypes.CDLL(None).pause()) if "ocr" in sys.argv else Hanging()
scorer.background, scorer.timeout = "background" in sys.argv, 0.2
try:
    for _ in range(2):
        table = score_all([scorer], np.zeros((2, 8, 8, 3), np.uint8), [Prompt("x", "ocr", {"text": "x"})] * 2)
        print(*table.missing.values())
except MarbleError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


@pytest.mark.parametrize("how", ["foreground", "background", "ocr"])
def test_a_scorer_that_hangs_in_c_code_gives_no_values_once_and_then_ends_the_process_with_one_sentence(how):
    done = subprocess.run([sys.executable, "-c", HANGING, how], capture_output=True, text=True, timeout=600, check=False)
    name = "ocr" if how == "ocr" else "stuck"
    sentence = f"The reward '{name}' has not ended scoring 2 images after 0.2 s: it hangs, or its 'timeout' must be raised.\n"
    assert (done.returncode, done.stderr) == (2, sentence)
    assert done.stdout == "it has not ended scoring 2 images after 0.2 s it has not ended scoring 2 images after 0.2 s\n"


class Stuck:
    """A user's scorer whose service does not answer until the test is over."""

    value_range = (0.0, 1.0)
    over = threading.Event()

    def applies(self, prompt):
        return True

    def score(self, images_NHWC, prompts):
        self.over.wait()

    def self_check(self):
        self.over.wait()


def test_the_configured_timeout_holds_for_the_self_check_and_grows_with_the_images():
    try:
        with pytest.raises(MarbleError, match=r"'mine' has not ended checking itself after 0\.05 s"):
            load_scorers([RewardConfig(name="mine", scorer=f"{__name__}:Stuck", timeout=0.05)])
        scorer = Stuck()
        scorer.name, scorer.timeout = "mine", 0.02
        table = score_all([scorer], np.zeros((2500, 1, 1, 3), np.uint8), [GENERAL] * 2500)
        assert set(table.missing.values()) == {"it has not ended scoring 2500 images after 0.05 s"}
    finally:
        Stuck.over.set()


def test_the_demo_preset_loads_checks_itself_and_masks_by_prompt():
    rng = Random(1)
    chosen = [e for source in SOURCES for e in entries(source, 20, 5, True)]
    images = np.stack([np.asarray(draw(rng.choice(e.scenes), rng)) for e in chosen])
    prompts = [e.prompt for e in chosen]
    scorers = load_scorers(load_config("demo").rewards)
    table = score_all(scorers, images, prompts)
    wanted = np.array([[True, True, True, p.source == "ocr", p.source == "geneval"] for p in prompts])
    np.testing.assert_array_equal(table.mask_NK, wanted)
    for scorer, column in zip(scorers, table.R_NK.T, strict=True):
        low, high = scorer.value_range
        assert (column[~np.isnan(column)] >= low).all() and (column[~np.isnan(column)] <= high).all()
    again = score_all(scorers[::-1], images, prompts)
    np.testing.assert_array_equal(again.R_NK[:, ::-1], table.R_NK)


def test_the_demos_rewards_prefer_the_right_whole_picture():
    rng = Random(2)
    chosen = [e for source in SOURCES for e in entries(source, 40, 6, True)]
    images = np.stack([np.asarray(draw(rng.choice(e.scenes), rng)) for e in chosen])
    prompts = [e.prompt for e in chosen]
    emptied = np.stack([np.full_like(image, 0) + image[1, 1] for image in images])
    scorers = load_scorers(load_config("demo").rewards[:2])
    true, empty, other = (
        score_all(scorers, pictures, prompts).R_NK for pictures in (images, emptied, np.roll(images, 7, axis=0))
    )
    assert ((true > empty).mean(0) > 0.9).all()
    assert ((true > other).mean(0) > 0.9).all()


@pytest.mark.parametrize(
    ("reward", "sentence"),
    [
        ({"name": "ocr", "options": {"detecton": False}}, r"'ocr' has no option 'detecton': did you mean 'detection'\?"),
        ({"name": "geneval", "options": {"detector": "nowhere"}}, "'nowhere' is not of the form 'package.module:Class'"),
        (
            {"name": "geneval", "options": {"detector": SHAPES_DETECTOR, "detector_options": {"size": 1}}},
            "detector of the reward 'geneval' has no option 'size'",
        ),
        ({"name": "geneval", "options": {"detector": SHAPES_DETECTOR, "rule": "some"}}, "no rule 'some'"),
        ({"name": "beauty"}, "'beauty' is not known: choose one of clipscore"),
        ({"name": "mine", "scorer": "no_such_package.mod:Mine"}, "cannot be imported"),
        ({"name": "mine", "scorer": "marble_core.types:Nothing"}, "has no class 'Nothing'"),
        ({"name": "mine", "scorer": "marble_core.types:PromptBatch"}, "needs the option 'prompts'"),
        ({"name": "mine", "scorer": SHAPES_DETECTOR}, "is no class of its kind, it lacks 'applies'"),
        ({"name": "clipscore", "options": {"checkpoint": "/no/such"}}, "'/no/such' does not exist"),
    ],
)
def test_what_a_user_can_get_wrong_is_answered_by_one_sentence(reward, sentence):
    with pytest.raises(MarbleError, match=sentence):
        load_scorers([RewardConfig(**reward)])


@pytest.mark.parametrize("field", ["scorer", "detector", "colors"])
def test_what_is_no_class_of_its_kind_is_refused_before_it_is_called(field, tmp_path):
    """subprocess.Popen is a class, and to call it is to run a program."""
    path, options = "subprocess:Popen", {"args": ["touch", str(tmp_path / "ran")]}
    plugin = {"detector": SHAPES_DETECTOR, field: path, f"{field}_options": options}
    mine = {"name": "mine", "scorer": path, "options": options}
    with pytest.raises(MarbleError, match="'subprocess:Popen' is no class of its kind, it lacks"):
        load_scorers([RewardConfig(**(mine if field == "scorer" else {"name": "geneval", "options": plugin}))])
    assert not (tmp_path / "ran").exists()


class Plugin(Reward):
    """A user's own scorer."""

    def __init__(self, factor):
        super().__init__("unnamed", lambda prompt: factor)


def test_any_import_path_is_a_reward_under_the_configured_name():
    (scorer,) = load_scorers([RewardConfig(name="mine", scorer=f"{__name__}:Plugin", options={"factor": 3})])
    assert score_all([scorer], noise(1, 8), [GENERAL]).means() == {"mine": 3}
