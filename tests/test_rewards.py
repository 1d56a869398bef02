"""The rewards: formulas against independent computations, rules against the released ones' vectors, masks, errors."""

from random import Random

import numpy as np
import pytest
from PIL import Image

from marble_core.config import RewardConfig
from marble_core.demo.draw import draw
from marble_core.demo.prompts import entries
from marble_core.loading import load_config
from marble_core.rewards import load_scorers, score_all
from marble_core.rewards.geneval import Detection, Found, GenEval, official, partial, relations, strict
from marble_core.rewards.ocr import Ocr, similarity
from marble_core.types import SOURCES, MarbleError, Prompt

TEXTS = ("a red cat", "two dogs", "a red cat", "the sea at night")
PROMPTS = [Prompt(text, "general") for text in TEXTS]
SHAPES_DETECTOR = "marble_core.demo.shapes:ShapesDetector"


def noise(count, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


# ------------------------------------------------------------------------------------------------------------------ OCR
def test_the_ocr_reward_is_the_released_formula():
    assert similarity("S T O P", "stop") == 1
    assert similarity("xxSTOPxx", "STOP") == 1
    assert similarity("STEP", "STOP") == 0.75
    assert similarity("sitting", "kitten") == 0.5
    assert similarity("", "STOP") == 0
    assert similarity("a very long other text", "STOP") == 0


def test_ocr_reads_each_picture_once_and_keeps_their_order():
    images = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1)
    reader = lambda part: [str(image.item()) for image in part]
    prompts = [Prompt("", "ocr", target=str(i)) for i in range(7)]
    assert Ocr(reader=reader, workers=3).score(images, prompts).tolist() == [1] * 7


@pytest.fixture(scope="module")
def signs():
    rng = Random(0)
    chosen = entries("ocr", 100, 0, True)
    return np.stack([np.asarray(draw(rng.choice(e.scenes), rng)) for e in chosen]), [e.prompt for e in chosen]


def test_ocr_reads_the_worlds_signs(signs):
    images, prompts = signs
    right = Ocr(detection=False).score(images, prompts)
    wrong = Ocr(detection=False).score(images[:20], prompts[20:40])
    assert (right == 1).mean() >= 0.98
    assert wrong.mean() < 0.5


def test_ocr_with_detection_reads_large_pictures(signs):
    images, prompts = signs
    large = np.stack([np.asarray(Image.fromarray(image).resize((256, 256), Image.Resampling.BICUBIC)) for image in images[:4]])
    scorer = Ocr()
    scorer.self_check()
    assert scorer.score(large, prompts[:4]).mean() >= 0.9
    assert scorer.score(np.full((1, 256, 256, 3), 200, np.uint8), prompts[:1]) == 0


# -------------------------------------------------------------------------------------------------------------- GenEval
BOX = (0, 0, 10, 10)
DOG, CAT = Found((0, 0, 10, 10)), Found((40, 0, 50, 10))
POSITION = ({"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["right of", 0]})
COLOR = ({"class": "cup", "count": 1, "color": "red"},)
COUNT, SURPLUS = ({"class": "cup", "count": 3},), ({"class": "cup", "count": 4},)
RED, BLUE = Found(BOX, "red"), Found(BOX, "blue")

VECTORS = [  # include, exclude, objects, then the released partial, strict, official (shared/rewards.md, section 4)
    (COLOR, (), {"cup": [RED]}, 1, 1, 1),
    (COLOR, (), {"cup": [BLUE]}, 0.5, 0, 0),
    (COLOR, (), {"cup": [RED, RED]}, 0, 0, 1),
    (COLOR, (), {}, 0, 0, 0),
    (COUNT, SURPLUS, {}, 0, 0, 0),
    (COUNT, SURPLUS, {"cup": [RED] * 2}, 2 / 3, 0, 0),
    (COUNT, SURPLUS, {"cup": [RED] * 3}, 1, 1, 1),
    (COUNT, SURPLUS, {"cup": [RED] * 4}, 2 / 3, 0, 0),
    (COUNT, SURPLUS, {"cup": [RED] * 6}, 0, 0, 0),
    (COUNT, SURPLUS, {"cup": [RED] * 8}, -2 / 3, 0, 0),
    (POSITION, (), {"dog": [DOG], "cat": [CAT]}, 1, 1, 1),
    (POSITION, (), {"dog": [CAT], "cat": [DOG]}, 0.75, 0, 0),
    (POSITION, (), {"cat": [CAT]}, 1 / 3, 0, 0),
    (POSITION, (), {"dog": [DOG]}, 1 / 3, 0, 0),
    (POSITION, (), {"dog": [DOG, DOG], "cat": [CAT]}, 1 / 3, 0, 1),
]


@pytest.mark.parametrize(("include", "exclude", "objects", "part", "all_right", "correct"), VECTORS)
def test_the_rules_are_the_released_ones(include, exclude, objects, part, all_right, correct):
    assert partial(include, objects, exclude, clip=False, fix_position=False) == pytest.approx(part)
    assert strict(include, objects) == all_right
    assert official(include, exclude, objects) == correct


def test_clip_and_the_position_fix_change_only_what_they_name():
    for include, exclude, objects, released, *_ in VECTORS:
        ours = partial(include, objects, exclude)
        wrong_side = include is POSITION and released == 0.75
        assert ours == pytest.approx(2 / 3 if wrong_side else max(0, released))


def test_clutter_lowers_the_partial_score_and_its_absence_raises_nothing():
    clutter = ({"class": "blob", "count": 1},)
    assert partial(COLOR, {"cup": [RED]}, clutter) == 1
    assert partial(COLOR, {}, clutter) == 0
    assert partial(COLOR, {"cup": [RED], "blob": [BLUE]}, clutter) == pytest.approx(2 / 3)


def test_relations_of_boxes():
    assert relations((0, 0, 10, 10), (5, 0, 15, 10)) == {"left of"}
    assert relations((1, 0, 11, 10), (0, 0, 10, 10)) == set()
    assert relations((20, 20, 30, 30), (40, 40, 50, 50)) == {"left of", "above"}
    assert relations((0, 40, 10, 50), (0, 60, 10, 70)) == {"above"}
    assert relations((40, 0, 50, 10), (0, 0, 10, 10)) == {"right of"}


class FakeDetector:
    """Three cups at scores .95, .8 and .2."""

    def __init__(self, checkpoint="none"):
        pass

    def detect(self, image_HWC):
        return [Detection("cup", score, BOX) for score in (0.2, 0.95, 0.8)]

    def colors(self, image_HWC, detections):
        return ["red"] * len(detections)

    def self_check(self):
        pass


def test_counting_wants_surer_detections_than_the_other_tags():
    scorer = GenEval(f"{__name__}:FakeDetector", detector_options={"checkpoint": "x"})
    image = np.zeros((1, 8, 8, 3), np.uint8)
    two = ({"class": "cup", "count": 2},)
    assert scorer.score(image, [Prompt("", "geneval", tag="two_object", include=two)]) == [1]
    assert scorer.score(image, [Prompt("", "geneval", tag="counting", include=two)]) == [0.5]


def test_geneval_is_one_on_ground_truth_and_low_on_other_pictures():
    rng = Random(0)
    chosen = entries("geneval", 120, 0, True)
    images = np.stack([np.asarray(draw(rng.choice(e.scenes), rng)) for e in chosen])
    prompts = [e.prompt for e in chosen]
    for rule in ("partial", "strict", "official"):
        scorer = GenEval(SHAPES_DETECTOR, rule=rule)
        assert scorer.score(images, prompts).mean() >= 0.99
        assert scorer.score(np.roll(images, 1, axis=0), prompts).mean() < 0.3
    assert not GenEval(SHAPES_DETECTOR).score(np.full_like(images, 250), prompts).any()


# ------------------------------------------------------------------------------------------------------ table and errors
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
    prompts = [Prompt("one", "general"), Prompt("two", "ocr", target="TWO"), Prompt("three", "general")]
    rewards = [Reward("every", lambda p: len(p.text)), Reward("quoted", lambda p: 9, lambda p: p.target is not None)]
    rewards[1].background = True
    table = score_all(rewards, noise(3, 8), prompts)
    assert table.names == ("every", "quoted") and table.R_NK.dtype == np.float64
    np.testing.assert_array_equal(table.R_NK, [[3, np.nan], [3, 9], [5, np.nan]])


def test_a_value_that_is_not_finite_is_a_fault_and_no_mask():
    values = {"one": np.nan, "two": -np.inf, "three": 1.0}
    table = score_all([Reward("r", lambda p: values[p.text])], noise(3, 8), [Prompt(text, "general") for text in values])
    assert table.R_NK[:, 0].tolist() == [np.inf, np.inf, 1]


@pytest.mark.parametrize("background", [False, True])
def test_a_scorer_that_raises_is_named_with_its_prompt(background):
    def fail(prompt):
        return 1 / len(prompt.text)

    reward = Reward("broken", fail)
    reward.background = background
    with pytest.raises(MarbleError, match="'broken' failed on the prompt '': ZeroDivisionError") as caught:
        score_all([reward], noise(3, 8), [Prompt(text, "general") for text in ("one", "", "two")])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


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
        ({"name": "geneval"}, "'geneval' needs the option 'detector'"),
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
        ({"name": "mine", "scorer": f"{__name__}:FakeDetector"}, "is no scorer, it lacks 'applies'"),
        ({"name": "clipscore", "options": {"checkpoint": "/no/such"}}, "'/no/such' does not exist"),
    ],
)
def test_what_a_user_can_get_wrong_is_answered_by_one_sentence(reward, sentence):
    with pytest.raises(MarbleError, match=sentence):
        load_scorers([RewardConfig(**reward)])


class Plugin(Reward):
    """A user's own scorer."""

    def __init__(self, factor):
        super().__init__("unnamed", lambda prompt: factor)


def test_any_import_path_is_a_reward_under_the_configured_name():
    (scorer,) = load_scorers([RewardConfig(name="mine", scorer=f"{__name__}:Plugin", options={"factor": 3})])
    assert score_all([scorer], noise(1, 8), PROMPTS[:1]).means() == {"mine": 3}
