"""Every form of wish, over all scenes of up to four objects: the right images score above all wrong ones."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest

from marble_core.rewards.geneval.rules import official, partial, strict
from marble_core.rewards.geneval.sharing import Found, count_ways
from marble_core.types import Prompt


class Thing(NamedTuple):
    label: str
    color: str
    column: int
    row: int


PLACES = list(itertools.product((0, 1), (0, 1)))
KINDS = list(itertools.product(("cup", "dog"), ("red", "blue")))
SCENES = [
    [Thing(*kind, *place) for kind, place in zip(kinds, places, strict=True)]
    for number in range(5)
    for places in itertools.combinations(PLACES, number)
    for kinds in itertools.product(KINDS, repeat=number)
]


def one(label: str, color: str | None = None, position: list[Any] | None = None, count: int = 1) -> dict[str, Any]:
    wish = {"class": label, "count": count, "color": color, "position": position}
    return {key: value for key, value in wish.items() if value is not None}


FORMS = {
    "single": ([one("cup")], []),
    "counting two": ([one("cup", count=2)], []),
    "counting three, fewer than four": ([one("cup", count=3)], [one("cup", count=4)]),
    "counting two, and no dog": ([one("cup", count=2)], [one("cup", count=3), one("dog")]),
    "one cup, fewer than two dogs": ([one("cup")], [one("dog", count=2)]),
    "two objects": ([one("cup"), one("dog")], []),
    "a colour": ([one("cup", "red")], []),
    "two of a colour": ([one("cup", "red", count=2)], []),
    "two colours": ([one("cup", "red"), one("dog", "blue")], []),
    **{f"position {r}": ([one("dog"), one("cup", position=[r, 0])], []) for r in ("left of", "right of", "above", "below")},
    "two cups left of a red dog": ([one("dog", "red"), one("cup", position=["left of", 0], count=2)], []),
    "coloured position": ([one("dog", "red"), one("cup", "blue", ["above", 0])], []),
    "one class, two colours": ([one("cup", "red"), one("cup", "blue")], []),
    "one class, two colours and numbers": ([one("cup", "red", count=2), one("cup", "blue")], []),
    "one class, one colour": ([one("cup", "red"), one("cup")], []),
    "one class twice, plainly": ([one("cup"), one("cup", count=2)], []),
    "one class, position": ([one("cup"), one("cup", position=["left of", 0])], []),
    "one class, two colours, position": ([one("cup", "red"), one("cup", "blue", ["below", 0])], []),
    "one class, numbers, position": ([one("cup", count=2), one("cup", position=["left of", 0])], []),
    "one class, two colours, another": ([one("cup", "red"), one("cup", "blue"), one("dog")], []),
    "a dog left of a cup left of nothing": ([one("cup"), one("dog", position=["left of", 0]), one("cup", "red")], []),
    "a dog left of a red cup, and a cup": ([one("cup", "red"), one("dog", position=["left of", 0]), one("cup")], []),
    "a square": ([one("cup"), one("dog", position=["right of", 0]), one("dog", position=["below", 0])], []),
    "one class, two colours, and no dog": ([one("cup", "red"), one("cup", "blue")], [one("cup", count=3), one("dog")]),
}
ONCE = [name for name in FORMS if not name.startswith(("one class", "a dog left", "a square"))]


def stands(relation: str, thing: Thing, other: Thing) -> bool:
    return {
        "left of": thing.column < other.column,
        "right of": thing.column > other.column,
        "above": thing.row < other.row,
        "below": thing.row > other.row,
    }[relation]


def shows(include: list[dict[str, Any]], things: list[Thing]) -> bool:
    """By seating: each wanted object is a seat, and the things fill all seats in some order, each one its own."""
    seats = [(i, wish) for i, wish in enumerate(include) for _ in range(wish["count"])]

    def fits(order: tuple[Thing, ...]) -> bool:
        for (_, wish), thing in zip(seats, order, strict=True):
            if thing.label != wish["class"] or thing.color != wish.get("color", thing.color):
                return False
            relation, index = wish.get("position", ("", None))
            others = [other for (i, _), other in zip(seats, order, strict=True) if i == index]
            if not all(stands(relation, thing, other) for other in others):
                return False
        return True

    return len(things) == len(seats) and any(fits(order) for order in itertools.permutations(things))


def found(scene: list[Thing]) -> dict[str, list[Found]]:
    objects: dict[str, list[Found]] = {}
    for thing in scene:
        x, y = 40 * thing.column, 40 * thing.row
        objects.setdefault(thing.label, []).append(Found((x, y, x + 10, y + 10), thing.color))
    return objects


@pytest.mark.parametrize("form", FORMS)
def test_the_right_images_of_a_wish_score_one_and_all_others_less(form: str) -> None:
    include, exclude = FORMS[form]
    wanted = {wish["class"] for wish in include}
    number_right = 0
    for scene in SCENES:
        objects = found(scene)
        things = [thing for thing in scene if thing.label in wanted]
        clean = not any(sum(t.label == wish["class"] for t in scene) >= wish["count"] for wish in exclude)
        value = partial(include, objects, exclude)
        assert (value == 1) == (shows(include, things) and clean) and 0 <= value <= 1, (scene, value)
        assert strict(include, objects) == shows(include, things), scene
        some = any(
            shows(include, list(part)) for part in itertools.combinations(things, sum(wish["count"] for wish in include))
        )
        judged = official(include, exclude, objects)
        assert judged <= (some and clean) and judged >= (shows(include, things) and clean), scene
        number_right += value == 1
    assert 0 < number_right < len(SCENES)


@pytest.mark.parametrize("form", ONCE)
def test_wishes_that_name_each_class_once_score_as_the_released_way_of_counting_scores_them(form: str) -> None:
    include, exclude = FORMS[form]
    for scene in SCENES:
        objects = found(scene)
        for switches in ({"clip": False, "fix_position": False}, {}):
            assert partial(include, objects, exclude, **switches) == partial(include, objects, exclude, **switches, share=False)
        assert strict(include, objects) == strict(include, objects, share=False)
        assert official(include, exclude, objects) == official(include, exclude, objects, share=False)


def test_two_wishes_of_a_class_are_worth_more_the_nearer_the_image_is() -> None:
    two_colors, beside = FORMS["one class, two colours"][0], FORMS["one class, position"][0]
    red, blue = Thing("cup", "red", 0, 0), Thing("cup", "blue", 1, 0)
    images = ([], [red], [red, red._replace(column=1)], [red, blue], [red, blue, blue._replace(row=1)])
    assert [partial(two_colors, found(image)) for image in images] == [0, 0.25, 0.75, 1, 0.25]
    images = ([], [red], [red, red._replace(row=1)], [red, red._replace(column=1)])
    assert [partial(beside, found(image)) for image in images] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_the_released_rules_hand_each_wish_of_a_class_all_of_its_objects() -> None:
    two_colors, beside = FORMS["one class, two colours"][0], FORMS["one class, position"][0]
    red, blue = Thing("cup", "red", 0, 0), Thing("cup", "blue", 1, 0)
    released = {"clip": False, "fix_position": False, "share": False}
    assert [partial(two_colors, found(image), **released) for image in ([red, blue], [red])] == [0, 0.75]
    assert partial(beside, found([red, blue]), **released) == 0 and strict(two_colors, found([red, blue]), share=False) == 0


def test_colours_of_one_class_are_handed_out_as_well_as_by_trying_every_way() -> None:
    include = [one("cup", "red", count=2), one("cup", "blue"), one("cup"), one("cup", "red")]
    for colors in itertools.product(("red", "blue", "green"), repeat=5):
        best = 0.0
        for order in itertools.permutations(colors):
            seats, terms = iter(order), []
            for wish in include:
                own = [next(seats) for _ in range(wish["count"])]
                terms += [1.0] + ([own.count(wish["color"]) / len(own)] if "color" in wish else [])
            best = max(best, sum(terms) / len(terms))
        objects = {"cup": [Found((0, 0, 1, 1), color) for color in colors]}
        assert partial(include, objects) == pytest.approx(best), colors


def test_the_number_of_ways_is_that_of_the_orders_in_which_the_objects_can_be_handed_out() -> None:
    assert count_ways(FORMS["one class, two colours"][0]) == 1, "colours alone need one way"
    assert count_ways(FORMS["one class, numbers, position"][0]) == 3
    chain = [one("cup"), *(one("cup", position=["left of", i]) for i in range(6))]
    assert count_ways(chain) == 5040
    assert count_ways([*chain[:3], one("dog", position=["left of", 0]), one("dog", count=2)]) == 6 * 3
    row = [Found((40 * i, 0, 40 * i + 10, 10)) for i in range(7)]
    assert strict(chain, {"cup": row}) == 1 and strict(chain, {"cup": [*row[:6], Found((0, 40, 10, 50))]}) == 0


def test_the_scorer_shares_the_objects_out_unless_it_is_as_published() -> None:
    from marble_core.rewards.geneval.rules import Detection
    from planted_detector import Planted, scored

    pair = [Detection("cup", score, (40.0 * i, 0.0, 40.0 * i + 10, 10.0)) for i, score in enumerate((0.9, 0.8))]
    Planted.colour = {("cup", 0.9): "blue", ("cup", 0.8): "red"}
    wish = Prompt("a red cup and a blue cup", "geneval", {"include": [one("cup", "red"), one("cup", "blue")]})
    assert scored(pair, wish) == [1, 1, 1]
    assert scored(pair, wish, published=True) == [-0.0, 0, 0]
