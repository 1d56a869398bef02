"""GenEval's rules: the released ones' vectors, generated scenes against a plain reading of the rules, options, the demo's world."""

from random import Random

import numpy as np
import pytest

from marble_core.demo.draw import draw
from marble_core.demo.prompts import entries
from marble_core.rewards.geneval.boxes import iou, relations
from marble_core.rewards.geneval.rules import Detection, GenEval, official, partial, strict
from marble_core.rewards.geneval.sharing import Found
from marble_core.rewards.scoring import score_all
from marble_core.types import MarbleError, Prompt
from planted_detector import PLANTED, Planted, cups, scored

SHAPES_DETECTOR = "marble_core.demo.shapes:ShapesDetector"

BOX = (0, 0, 10, 10)

DOG, CAT = Found((0, 0, 10, 10)), Found((40, 0, 50, 10))

POSITION = ({"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["right of", 0]})

COLOR = ({"class": "cup", "count": 1, "color": "red"},)

COUNT, SURPLUS = ({"class": "cup", "count": 3},), ({"class": "cup", "count": 4},)

RED, BLUE = Found(BOX, "red"), Found(BOX, "blue")

VECTORS = [  # include, exclude, objects, then the released partial, strict, official
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


def test_only_an_object_that_stays_displaces_those_that_overlap_it():
    chain = [Detection("cup", 0.9 - 0.1 * i, (4.0 * i, 0.0, 4.0 * i + 9, 9.0)) for i in range(4)]
    two = Prompt("", "geneval", {"include": [{"class": "cup", "count": 2}]})
    assert scored(chain, two) == [0, 0, 1]
    assert scored(chain, two, max_overlap=0.3) == [1, 1, 1], "the first displaces the second, which then leaves the third"


def test_the_thresholds_and_the_most_objects_are_those_of_geneval_and_can_be_named():
    two = ({"class": "cup", "count": 2},)
    plain, counting = (Prompt("", "geneval", {"tag": tag, "include": two}) for tag in ("two_object", "counting"))
    detections = cups(0.3, 0.95, 0.9)
    assert scored(detections, plain) == [1, 1, 1]
    assert scored(detections, counting) == [0.5, 0, 0]
    assert scored(detections, plain, threshold=0.29) == [0.5, 0, 1]
    assert scored(detections, counting, counting_threshold=0.5) == [1, 1, 1]
    crowd = Prompt("", "geneval", {"include": [{"class": "cup", "count": 16}]})
    assert scored(cups(*np.linspace(0.5, 1, 20).tolist()), crowd) == [1, 1, 1]
    assert scored(cups(*np.linspace(0.5, 1, 20).tolist()), crowd, max_objects=20) == [0.75, 0, 1]


def test_iou_counts_whole_pixels():
    assert iou((0, 0, 9, 9), (0, 0, 9, 9)) == 1
    assert iou((0, 0, 9, 9), (10, 0, 19, 9)) == 0
    assert iou((0, 0, 9, 9), (5, 0, 14, 9)) == pytest.approx(1 / 3)


def test_the_published_switch_restores_the_released_reward_and_each_point_can_be_set_alone():
    many = Prompt("", "geneval", {"include": [{"class": "cup", "count": 1}], "exclude": [{"class": "blob", "count": 1}]})
    detections = [*cups(0.5, 0.6, 0.7), Detection("blob", 1.0, BOX)]
    assert scored(detections, many)[0] == 0
    assert scored(detections, many, published=True)[0] == -1
    assert scored(detections, many, published=True, clip=True)[0] == 0
    assert GenEval(PLANTED, published=True).value_range == (-15, 1)
    settings = GenEval(PLANTED, published=True, fix_position=True).settings
    assert settings["published"] and settings["swap_channels"] and settings["fix_position"] and not settings["clip"]


@pytest.mark.parametrize("options", [{}, {"swap_channels": True}, {"published": True}])
def test_the_detector_sees_rgb_unless_the_channels_are_swapped_and_colours_always_do(options, monkeypatch):
    seen = {}
    monkeypatch.setattr(Planted, "detect", lambda self, image: seen.update(detector=image[0, 0].tolist()) or cups(0.9))
    monkeypatch.setattr(Planted, "colors", lambda self, image, found: seen.update(colors=image[0, 0].tolist()) or ["red"])
    picture = np.full((1, 4, 4, 3), (200, 20, 2), np.uint8)
    GenEval(PLANTED, **options).score(picture, [Prompt("", "geneval", {"include": COLOR})])
    assert seen == {"detector": [2, 20, 200] if options else [200, 20, 2], "colors": [200, 20, 2]}


def test_the_rules_that_are_not_trained_on_are_reported_beside_the_reward():
    Planted.scenes = [cups(0.9), cups(0.9, 0.8), []]
    images = np.arange(3, dtype=np.uint8).repeat(48).reshape(3, 4, 4, 3)
    two = Prompt("", "geneval", {"include": [{"class": "cup", "count": 1}]})
    prompts = [two, two, Prompt("", "general")]
    for rule, reward in (("partial", [1, 0, np.nan]), ("official", [1, 1, np.nan])):
        table = score_all([GenEval(PLANTED, rule=rule)], images, prompts)
        np.testing.assert_array_equal(table.R_NK[:, 0], reward)
        assert set(table.side) == {f"geneval/{r}" for r in ("partial", "strict", "official") if r != rule}
        np.testing.assert_array_equal(table.side["geneval/strict"], [1, 0, np.nan])


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"class": "cups"}, r"'a photo': include\[0\].class is 'cups', a class that .* does not know; the nearest is 'cup'\."),
        ({"class": "cup", "color": "gray"}, r"include\[0\].color is 'gray', a colour that .*; it knows red, blue, green\."),
    ],
)
def test_a_class_or_colour_that_cannot_be_found_is_an_error_and_no_0(wish, says):
    with pytest.raises(MarbleError, match=says):
        scored([], Prompt("a photo", "geneval", {"include": [{"count": 1} | wish]}))


def test_geneval_is_one_on_ground_truth_and_low_on_other_pictures():
    rng = Random(0)
    chosen = entries("geneval", 120, 0, True)
    images = np.stack([np.asarray(draw(rng.choice(e.scenes), rng)) for e in chosen])
    prompts = [e.prompt for e in chosen]
    scorer = GenEval(SHAPES_DETECTOR)
    assert (scorer.score(images, prompts).mean(0) >= 0.99).all()
    assert (scorer.score(np.roll(images, 1, axis=0), prompts).mean(0) < 0.3).all()
    assert not scorer.score(np.full_like(images, 250), prompts).any()
