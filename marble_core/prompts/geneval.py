"""GenEval's prompts for training: real COCO classes, by the rules of djghosh13/geneval (MIT), without its 553 test prompts.

Ours differ where its English does not hold ("two toothbrushs", "a skis"). The test prompts are known by a hash of what they
mean, so that "two benches" is not trained on for "two benchs", nor "b right of a" for "a left of b".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from marble_core.prompts.kinds import Generator, Kind
from marble_core.prompts.metadata import RELATIONS, included
from marble_core.types import Prompt

# The detector's 80 classes in its order; the names are GenEval's object_names.txt (MIT).
CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light", "fire hydrant"),
    *("stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra"),
    *("giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite"),
    *("baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork"),
    *("knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut"),
    *("cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse"),
    *("tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock"),
    *("vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
NUMBERS = {2: "two", 3: "three", 4: "four"}
UNITS = {"scissors": "pair", "skis": "pair", "broccoli": "head"}  # "a pair of scissors": what has no singular of its own
PLURALS = {"person": "people", "sheep": "sheep", "knife": "knives"}
OPPOSITES = {"right of": "left of", "below": "above"}
COLORED = tuple(name for name in CLASSES if name != "person")

# flow_grpo's weights. Of single objects there is nothing to train on: all 80 are test prompts.
SHARES = {"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1}


def one(name: str, color: str = "") -> str:
    """ "an orange", "a pair of red skis"."""
    noun = f"{color} {name}".strip()
    if unit := UNITS.get(name):
        noun = f"{unit} of {noun}"
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def several(name: str) -> str:
    """ "buses", "pairs of skis"."""
    if unit := UNITS.get(name):
        return f"{unit}s of {name}"
    hisses = name.endswith(("s", "x", "z", "ch", "sh"))
    return PLURALS.get(name) or name + ("es" if hisses else "s")


def meaning(include: Sequence[Mapping[str, Any]]) -> str:
    """What the metadata ask for, in words that do not depend on the order of the objects or the side they are seen from."""
    things = [f"{wish['count']} {wish.get('color', 'any')} {wish['class']}" for wish in include]
    placed = []
    for wish, thing in zip(include, things, strict=True):
        if "position" in wish:
            relation, index = wish["position"]
            first, second = (things[index], thing) if relation in OPPOSITES else (thing, things[index])
            placed.append(f"{first} {OPPOSITES.get(relation, relation)} {second}")
    return "; ".join(sorted(things) + sorted(placed))


def fingerprint(meaning: str) -> str:
    return hashlib.blake2b(meaning.encode(), digest_size=5).hexdigest()


def is_test(meaning: str) -> bool:
    """Whether a prompt of the official test set asks for this."""
    return fingerprint(meaning) in _test_set()


@cache
def _test_set() -> frozenset[str]:
    return frozenset(
        json.loads(files("marble_core.prompts").joinpath("geneval_test.json").read_text(encoding="utf-8"))["fingerprints"]
    )


def _counting(name: str, count: int) -> Prompt:
    surplus = {"class": name, "count": count + 1}
    text = f"a photo of {NUMBERS[count]} {several(name)}"
    return _prompt(text, "counting", [{"class": name, "count": count}], [surplus])


def _colors(name: str, color: str) -> Prompt:
    return _prompt(f"a photo of {one(name, color)}", "colors", [_wish(name, color=color)])


def _two_object(first: str, second: str) -> Prompt | None:
    if first == second:
        return None
    text = f"a photo of {one(first)} and {one(second)}"
    return _prompt(text, "two_object", [_wish(first), _wish(second)])


def _color_attr(first: str, second: str, color: str, other: str) -> Prompt | None:
    if first == second or color == other:
        return None
    text = f"a photo of {one(first, color)} and {one(second, other)}"
    return _prompt(text, "color_attr", [_wish(first, color=color), _wish(second, color=other)])


def _position(first: str, second: str, relation: str) -> Prompt | None:
    if first == second:
        return None
    text = f"a photo of {one(first)} {relation} {one(second)}"
    # A position refers to an earlier entry: "A left of B" lists B first.
    return _prompt(text, "position", [_wish(second), _wish(first, position=[relation, 0])])


def _prompt(text: str, tag: str, include: list[dict[str, Any]], exclude: list[dict[str, Any]] | None = None) -> Prompt:
    return Prompt(text, "geneval", {"tag": tag, "include": include} | ({"exclude": exclude} if exclude else {}))


def _wish(name: str, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": 1, **more}


GENERATOR = Generator(
    kinds={
        "position": Kind((CLASSES, CLASSES, RELATIONS), _position),
        "counting": Kind((CLASSES, tuple(NUMBERS)), _counting),
        "color_attr": Kind((COLORED, COLORED, COLORS, COLORS), _color_attr),
        "colors": Kind((COLORED, COLORS), _colors),
        "two_object": Kind((CLASSES, CLASSES), _two_object),
    },
    shares=SHARES,
    meaning=lambda prompt: meaning(included(prompt)),
    is_test=is_test,
)
