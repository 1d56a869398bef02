"""GenEval: are the wanted objects there, so many, of that colour, in that place? Rules of docs/rewards.md, section 4.

The rules see objects, not pictures: a detector (a seam: the demo's shapes, or Mask2Former) finds them and a colour classifier
names their colours. ``partial`` is what flow_grpo, DiffusionNFT and MARBLE train on; ``strict`` and ``official`` are 0 or 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from marble_core.config.imports import import_class
from marble_core.rewards.registry import construct
from marble_core.types import MarbleError, Prompt

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

RULES = ("partial", "strict", "official")
MASK2FORMER, CLIP_COLORS = (
    "marble_core.rewards.geneval.mask2former:Mask2Former",
    "marble_core.rewards.geneval.colors:ClipColors",
)
POSITION_SLACK = 0.1


@dataclass(frozen=True)
class Detection:
    """One object. ``mask`` is (H, W) bool, or None where the detector has only boxes."""

    label: str
    score: float
    box: Box
    mask: np.ndarray | None = None


class Detector(Protocol):
    """It may also have ``detect_many`` (images_NHWC -> an iterable of each picture's objects), which is then used, and
    ``classes``, all that it knows: a prompt that wants another is refused."""

    def detect(self, image_HWC: np.ndarray) -> list[Detection]:
        """Objects of every class it knows in a uint8 RGB picture; what fits no class may come as a class of its own."""
        ...

    def self_check(self) -> None:
        """Raise MarbleError where a picture with known objects is read wrongly."""
        ...


class ColorClassifier(Protocol):
    def colors(self, image_HWC: np.ndarray, detections: Sequence[Detection]) -> list[str]:
        """The colour of each detection, all of one class."""
        ...

    def self_check(self) -> None: ...


@dataclass(frozen=True)
class Found:
    """A detection as the rules see it."""

    box: Box
    color: str | None = None


Objects = Mapping[str, Sequence[Found]]  # by class, best first
Wishes = Sequence[Mapping[str, Any]]  # include or exclude of a prompt


def partial(include: Wishes, objects: Objects, exclude: Wishes = (), clip: bool = True, fix_position: bool = True) -> float:
    """Mean over the conditions of all wanted objects: at most 1; at least 0 with ``clip``, else -14 for one object.

    ``clip`` keeps a count's term 1 - |wanted - found| / wanted from going below 0. ``fix_position`` gives a wrong position 0; the
    released rules give 0 and 1, so that it costs half. An excluded class that is not also wanted (the demo's clutter; GenEval's
    own metadata has none) adds a condition that failed where it is found, and nothing where it is not.
    """
    terms: list[float] = []
    matched: list[Sequence[Found] | None] = []
    for wish in include:
        count, found = wish["count"], objects.get(wish["class"], ())
        term = 1 - abs(count - len(found)) / count
        terms.append(max(0.0, term) if clip else term)
        if len(found) != count:
            if "color" in wish or "position" in wish:
                terms.append(0.0)
            matched.append(None)
            continue
        right = True
        if "color" in wish:
            colored = sum(item.color == wish["color"] for item in found)
            terms.append(1 - abs(count - colored) / count)
            right = colored == count
        if "position" in wish and right:
            relation, index = wish["position"]
            right = _all_stand(found, relation, matched[index])
            if fix_position or matched[index] is None:
                terms.append(float(right))
            else:
                terms.extend([1.0] if right else [0.0, 1.0])
        matched.append(found if right else None)
    wanted = {wish["class"] for wish in include}
    terms += [0.0 for wish in exclude if wish["class"] not in wanted and _too_many(wish, objects)]
    return float(np.mean(terms)) if terms else 0.0


def strict(include: Wishes, objects: Objects) -> float:
    """1 where every count is exact and every colour and position right. ``exclude`` is not looked at."""
    return float(_fulfilled(include, objects, exact=True))


def official(include: Wishes, exclude: Wishes, objects: Objects) -> float:
    """GenEval's ``correct``: at least the wanted objects (the best ones are judged), and nothing excluded."""
    return float(_fulfilled(include, objects, exact=False) and not any(_too_many(wish, objects) for wish in exclude))


def _fulfilled(include: Wishes, objects: Objects, exact: bool) -> bool:
    matched: list[Sequence[Found] | None] = []
    for wish in include:
        count, everything = wish["count"], objects.get(wish["class"], ())
        found = everything[:count]
        right = len(everything) == count if exact else len(everything) >= count
        right = right and all("color" not in wish or item.color == wish["color"] for item in found)
        if right and "position" in wish:
            relation, index = wish["position"]
            right = _all_stand(found, relation, matched[index])
        matched.append(found if right else None)
    return all(found is not None for found in matched)


def _too_many(wish: Mapping[str, Any], objects: Objects) -> bool:
    return len(objects.get(wish["class"], ())) >= wish["count"]


def _all_stand(found: Sequence[Found], relation: str, others: Sequence[Found] | None) -> bool:
    return others is not None and all(relation in relations(item.box, other.box) for item in found for other in others)


def relations(box: Box, other: Box) -> set[str]:
    """Where ``box`` stands as seen from ``other``; the centres must differ by more than a tenth of both sizes together."""
    box_array, other_array = (np.asarray(b, dtype=float).reshape(2, 2) for b in (box, other))
    offset = box_array.mean(0) - other_array.mean(0)
    sizes = np.abs(np.diff(box_array, axis=0)[0]) + np.abs(np.diff(other_array, axis=0)[0])
    revised = np.sign(offset) * np.maximum(np.abs(offset) - POSITION_SLACK * sizes, 0)
    if np.all(np.abs(revised) < 1e-3):
        return set()
    dx, dy = revised / np.linalg.norm(offset)
    found = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, holds in found.items() if holds}


def iou(box: Box, other: Box) -> float:
    """Intersection over union as GenEval counts it, with a pixel more on each side's length."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0.0) * max(bottom - top + 1, 0.0)

    shared = area(max(box[0], other[0]), max(box[1], other[1]), min(box[2], other[2]), min(box[3], other[3]))
    return shared / (area(*box) + area(*other) - shared)


class GenEval:
    """Partial score, in [0, 1] with ``clip``, and beside it ``strict`` and ``official``; applies to prompts that have ``include``.

    ``detector`` and ``colors`` are import paths of a Detector and a ColorClassifier, constructed with their options. Colours are
    named by ``colors``, else by the detector where it can, else by CLIP. ``rule`` makes another of the three the reward.

    ``published`` restores what flow_grpo, DiffusionNFT and MARBLE released: no ``clip``, no ``fix_position``, ``swap_channels``
    (their detector sees red as blue), no ``quick_gelu`` in the colours' CLIP, and clutter that costs nothing; the first three,
    and ClipColors' ``quick_gelu``, can also be set one by one. Objects count above ``threshold`` (``counting_threshold`` under the tag counting), the best
    ``max_objects`` of a class, without those that overlap a better one by an IoU of ``max_overlap`` (1: all stay).
    """

    name = "geneval"

    def __init__(
        self,
        detector: str = MASK2FORMER,
        detector_options: Mapping[str, Any] | None = None,
        colors: str | None = None,
        colors_options: Mapping[str, Any] | None = None,
        rule: str = "partial",
        published: bool = False,
        clip: bool | None = None,
        fix_position: bool | None = None,
        swap_channels: bool | None = None,
        threshold: float = 0.3,
        counting_threshold: float = 0.9,
        max_objects: int = 16,
        max_overlap: float = 1.0,
    ) -> None:
        if rule not in RULES:
            raise MarbleError(f"The reward 'geneval' has no rule {rule!r}; choose {', '.join(RULES[:-1])} or {RULES[-1]}.")
        self.rule, self.published = rule, published
        self.side = tuple(other for other in RULES if other != rule)
        self.clip = not published if clip is None else clip
        self.fix_position = not published if fix_position is None else fix_position
        self.swap_channels = published if swap_channels is None else swap_channels
        self.threshold, self.counting_threshold = threshold, counting_threshold
        self.max_objects, self.max_overlap = max_objects, max_overlap
        self.value_range = (0.0 if self.clip or rule != "partial" else 1.0 - max_objects, 1.0)
        self.detector: Detector = _plugin(detector, detector_options, "detector")
        self.colors: Any = self.detector  # a ColorClassifier
        if colors or not hasattr(self.detector, "colors"):
            released = {"quick_gelu": False} if published and colors is None else {}
            self.colors = _plugin(colors or CLIP_COLORS, released | dict(colors_options or {}), "colors")

    @property
    def modules(self) -> tuple[Any, ...]:
        return (*getattr(self.detector, "modules", ()), *getattr(self.colors, "modules", ()))

    @property
    def settings(self) -> dict[str, Any]:
        """Where this run stands on the points in which ours differs from the released code, for its record."""
        names = ("rule", "published", "clip", "fix_position", "swap_channels", "threshold", "counting_threshold")
        own = {name: getattr(self, name) for name in (*names, "max_objects", "max_overlap")}
        return own | getattr(self.detector, "settings", {}) | getattr(self.colors, "settings", {})

    def applies(self, prompt: Prompt) -> bool:
        return bool(prompt.include)

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        """(N, 3): the reward, and the two other rules' values."""
        for prompt in prompts:
            self._check_classes(prompt)
        seen_NHWC = images_NHWC[..., ::-1] if self.swap_channels else images_NHWC
        many = getattr(self.detector, "detect_many", None)
        detected = many(seen_NHWC) if many else map(self.detector.detect, seen_NHWC)
        rows = [
            self._values(prompt, self.find(image, prompt, detections))
            for image, prompt, detections in zip(images_NHWC, prompts, detected, strict=True)
        ]
        return np.array(rows)

    def self_check(self) -> None:
        self.detector.self_check()
        if self.colors is not self.detector:
            self.colors.self_check()

    def find(self, image_HWC: np.ndarray, prompt: Prompt, detections: Sequence[Detection]) -> dict[str, list[Found]]:
        """The objects that count, by class, the best first; colours only where they are asked for."""
        least = self.counting_threshold if prompt.tag == "counting" else self.threshold
        colored = {wish["class"] for wish in prompt.include if "color" in wish}
        by_class: dict[str, list[Detection]] = {}
        for detection in sorted(detections, key=lambda d: -d.score):
            if detection.score > least:
                by_class.setdefault(detection.label, []).append(detection)
        objects = {}
        for label, everything in by_class.items():
            kept = self._without_overlaps(everything[: self.max_objects])
            names = self.colors.colors(image_HWC, kept) if label in colored else [None] * len(kept)
            objects[label] = [Found(d.box, color) for d, color in zip(kept, names, strict=True)]
        return objects

    def _without_overlaps(self, detections: Sequence[Detection]) -> list[Detection]:
        if self.max_overlap >= 1:
            return list(detections)
        kept: list[Detection] = []
        for detection in detections:
            if all(iou(detection.box, better.box) < self.max_overlap for better in kept):
                kept.append(detection)
        return kept

    def _values(self, prompt: Prompt, objects: Objects) -> list[float]:
        clutter = () if self.published else prompt.exclude
        values = {
            "partial": partial(prompt.include, objects, clutter, self.clip, self.fix_position),
            "strict": strict(prompt.include, objects),
            "official": official(prompt.include, prompt.exclude, objects),
        }
        return [values[rule] for rule in (self.rule, *self.side)]

    def _check_classes(self, prompt: Prompt) -> None:
        """A class that the detector cannot find would score 0 for ever."""
        classes = getattr(self.detector, "classes", None)
        wanted = [wish["class"] for wish in prompt.include]
        if classes is not None and (unknown := [name for name in wanted if name not in classes]):
            near = difflib.get_close_matches(unknown[0], classes, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(list(classes)[:3])}, ..."
            raise MarbleError(
                f"The prompt {prompt.text!r} wants {unknown[0]!r}, which the detector of {self.name!r} does not know: {hint}"
            )


def _plugin(path: str, options: Mapping[str, Any] | None, field: str) -> Any:
    what = f"The {field} of the reward 'geneval'"
    return construct(import_class(path, what), dict(options or {}), what)
