"""GenEval's rewards of generated scenes against a plain reading of its rules."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marble_core.rewards.geneval.boxes import relations
from marble_core.rewards.geneval.rules import Detection
from marble_core.types import Prompt
from planted_detector import Planted, scored


# A plain reading of the rules for the generated scenes: recursive and by enumeration, unlike the code.
def standing(relation, a, b):
    def along(axis):
        sizes = (a[axis + 2] - a[axis]) + (b[axis + 2] - b[axis])
        offset = (a[axis] + a[axis + 2] - b[axis] - b[axis + 2]) / 2
        return offset, math.copysign(max(abs(offset) - 0.1 * sizes, 0), offset)

    (ox, rx), (oy, ry) = along(0), along(1)
    if max(abs(rx), abs(ry)) < 1e-3:
        return False
    x, y = rx / math.hypot(ox, oy), ry / math.hypot(ox, oy)
    return {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}[relation]


def kept(scene, label, tag, most, overlap):
    """The detections of a class that count, best first; those that overlap a better one that stays are out."""
    least = 0.9 if tag == "counting" else 0.3
    sure = sorted((d for d in scene if d.label == label and d.score > least), key=lambda d: d.score, reverse=True)[:most]
    if overlap == 1 or not sure:
        return sure

    def pixels(d):
        (x0, y0, x1, y1) = map(int, d.box)
        return {(x, y) for x in range(x0, x1 + 1) for y in range(y0, y1 + 1)}

    best, *rest = sure
    free = [d for d in rest if len(pixels(d) & pixels(best)) / len(pixels(d) | pixels(best)) < overlap]
    return [best, *kept(free, label, tag, most, overlap)]


def plainly(prompt, scene, published, most, overlap):
    """(partial, strict, official)."""
    here = {label: kept(scene, label, prompt.metadata.get("tag"), most, overlap) for label in Planted.classes}
    wishes, colour = prompt.metadata.get("include"), Planted.colour

    def stand(i, chosen):
        relation, j = wishes[i]["position"]
        return all(standing(relation, a.box, b.box) for a, b in itertools.product(chosen[i], chosen[j]))

    def coloured(i, chosen):
        return sum(colour[d.label, d.score] == wishes[i].get("color", colour[d.label, d.score]) for d in chosen[i])

    def right(i, enough):
        """Whether wish i is fulfilled, and all that its position refers to."""
        chosen = [here[w["class"]][: w["count"]] for w in wishes]
        wanted = wishes[i]["count"]
        if not enough(len(here[wishes[i]["class"]]), wanted) or coloured(i, chosen) < wanted:
            return False
        return "position" not in wishes[i] or (right(wishes[i]["position"][1], enough) and stand(i, chosen))

    def exactly(n, c):
        return n == c

    def at_least(n, c):
        return n >= c

    terms = []
    for i, wish in enumerate(wishes):
        n, c = len(here[wish["class"]]), wish["count"]
        count_term = 1 - abs(c - n) / c
        terms += [count_term if published or count_term > 0 else 0]
        if n != c:
            terms += [0] if "color" in wish or "position" in wish else []
            continue
        chosen = [here[w["class"]][: w["count"]] for w in wishes]
        if "color" in wish:
            terms += [1 - (c - coloured(i, chosen)) / c]
        if "position" in wish and coloured(i, chosen) == c:
            if not right(wish["position"][1], exactly):
                terms += [0]
            elif stand(i, chosen):
                terms += [1]
            else:
                terms += [0, 1] if published else [0]
    too_many = [w for w in prompt.metadata["exclude"] if len(here[w["class"]]) >= w["count"]]
    if not published:
        terms += [0 for w in too_many if w["class"] not in {x["class"] for x in wishes}]
    every = range(len(wishes))
    return (
        sum(terms) / len(terms),
        float(all(right(i, exactly) for i in every)),
        float(all(right(i, at_least) for i in every) and not too_many),
    )


@st.composite
def wishes(draw):
    include = []
    for i, label in enumerate(draw(st.permutations(["cup", "dog", "cat"]))[: draw(st.integers(1, 3))]):
        wish = {"class": label, "count": draw(st.integers(1, 4) if draw(st.booleans()) else st.just(1))}
        if draw(st.booleans()):
            wish["color"] = draw(st.sampled_from(["red", "blue"]))
        if i and draw(st.booleans()):
            wish["position"] = [draw(st.sampled_from(["left of", "right of", "above", "below"])), draw(st.integers(0, i - 1))]
        include.append(wish)
    surplus = [{"class": w["class"], "count": w["count"] + 1} for w in include] + [{"class": "blob", "count": 1}]
    exclude = draw(st.lists(st.sampled_from(surplus), max_size=2))
    tag = draw(st.sampled_from(["counting", "position", "color_attr"]))
    return Prompt("", "geneval", {"tag": tag, "include": tuple(include), "exclude": tuple(exclude)})


@st.composite
def scenes(draw, prompt):
    """For each wish about as many objects as it wants, of about its colour, anywhere on a coarse grid; and unsure ones."""
    labels = [
        w["class"]
        for w in prompt.metadata["include"]
        for _ in range(draw(st.integers(0, 2)) + w["count"] - draw(st.integers(0, 1)))
    ]
    labels += draw(st.lists(st.sampled_from(Planted.classes), max_size=2))
    scores = draw(
        st.lists(st.sampled_from(np.linspace(0.05, 1, 40).tolist()), min_size=len(labels), max_size=len(labels), unique=True)
    )
    sure = draw(st.booleans())
    found, colours = [], {}
    for label, score in zip(labels, scores, strict=True):
        x, y, w, h = (draw(st.integers(*limits)) * 5 for limits in ((0, 8), (0, 8), (1, 4), (1, 4)))
        score = 0.92 + 0.07 * score if sure else score
        found.append(Detection(label, score, (float(x), float(y), float(x + w), float(y + h))))
        wanted = next(
            (wish["color"] for wish in prompt.metadata["include"] if wish["class"] == label and "color" in wish), "red"
        )
        colours[label, score] = wanted if draw(st.integers(0, 3)) else "blue"
    return found, colours


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(st.data(), wishes(), st.booleans(), st.sampled_from([2, 16]), st.sampled_from([1.0, 0.3]))
def test_generated_scenes_score_as_a_plain_reading_of_the_rules_says(data, prompt, published, most, overlap):
    scene, Planted.colour = data.draw(scenes(prompt))
    options = {"published": published, "max_objects": most, "max_overlap": overlap}
    assert scored(scene, prompt, **options) == pytest.approx(plainly(prompt, scene, published, most, overlap))


SPAN = st.tuples(st.integers(0, 60), st.integers(1, 40)).map(lambda span: (span[0], sum(span)))

BOXES = st.tuples(SPAN, SPAN).map(lambda spans: (spans[0][0], spans[1][0], spans[0][1], spans[1][1]))


@settings(max_examples=500, derandomize=True, deadline=None, database=None)
@given(BOXES, BOXES)
def test_generated_boxes_stand_as_a_plain_reading_of_the_rules_says(box, other):
    assert relations(box, other) == {r for r in ("left of", "right of", "above", "below") if standing(r, box, other)}
