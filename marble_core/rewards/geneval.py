"""GenEval: are the wanted objects there, so many, of that colour, in that place? Rules of shared/rewards.md, section 4.

The rules see objects, not pictures: a detector (a seam: the demo's shapes, or Mask2Former) finds them and a colour classifier
names their colours. ``partial`` is what flow_grpo, DiffusionNFT and MARBLE train on; ``strict`` and ``official`` are 0 or 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from marble_core.rewards import construct, import_class
from marble_core.types import MarbleError, Prompt

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

SCORE, COUNTING_SCORE = 0.3, 0.9
MAX_OBJECTS = 16  # of a class
POSITION_SLACK = 0.1


@dataclass(frozen=True)
class Detection:
    """One object. ``mask`` is (H, W) bool, or None where the detector has only boxes."""

    label: str
    score: float
    box: Box
    mask: np.ndarray | None = None


class Detector(Protocol):
    def detect(self, image_HWC: np.ndarray) -> list[Detection]:
        """Objects of every class it knows in a uint8 RGB picture; what fits no class may come as a class of its own."""
        ...

    def self_check(self) -> None:
        """Raise MarbleError where a picture with known objects is read wrongly."""
        ...


class ColorClassifier(Protocol):
    def colors(self, image_HWC: np.ndarray, detections: Sequence[Detection]) -> list[str]:
        """The colour of each detection."""
        ...


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


class GenEval:
    """Partial score, in [0, 1] with ``clip``; applies to prompts that have ``include``.

    ``detector`` and ``colors`` are import paths of a Detector and a ColorClassifier, constructed with their options; without
    ``colors`` the detector names the colours itself. ``rule`` may be ``strict`` or ``official`` to report those instead.
    """

    name = "geneval"

    def __init__(
        self,
        detector: str,
        detector_options: Mapping[str, Any] | None = None,
        colors: str | None = None,
        colors_options: Mapping[str, Any] | None = None,
        rule: Literal["partial", "strict", "official"] = "partial",
        clip: bool = True,
        fix_position: bool = True,
    ) -> None:
        if rule not in ("partial", "strict", "official"):
            raise MarbleError(f"The reward 'geneval' has no rule {rule!r}; choose partial, strict or official.")
        self.detector: Detector = _plugin(detector, detector_options, "detector")
        self.colors: ColorClassifier = _plugin(colors, colors_options, "colors") if colors else self.detector
        self.rule, self.clip, self.fix_position = rule, clip, fix_position
        self.value_range = (0.0 if clip or rule != "partial" else 1.0 - MAX_OBJECTS, 1.0)

    def applies(self, prompt: Prompt) -> bool:
        return bool(prompt.include)

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        return np.array([self._score(image, prompt) for image, prompt in zip(images_NHWC, prompts, strict=True)])

    def self_check(self) -> None:
        self.detector.self_check()

    def _score(self, image_HWC: np.ndarray, prompt: Prompt) -> float:
        objects = self.find(image_HWC, prompt)
        match self.rule:
            case "strict":
                return strict(prompt.include, objects)
            case "official":
                return official(prompt.include, prompt.exclude, objects)
        return partial(prompt.include, objects, prompt.exclude, self.clip, self.fix_position)

    def find(self, image_HWC: np.ndarray, prompt: Prompt) -> dict[str, list[Found]]:
        """The objects that count: surer than the threshold, the best of each class, colours only where they are asked for."""
        least = COUNTING_SCORE if prompt.tag == "counting" else SCORE
        colored = {wish["class"] for wish in prompt.include if "color" in wish}
        by_class: dict[str, list[Detection]] = {}
        for detection in sorted(self.detector.detect(image_HWC), key=lambda d: -d.score):
            kept = by_class.setdefault(detection.label, [])
            if detection.score > least and len(kept) < MAX_OBJECTS:
                kept.append(detection)
        objects = {}
        for label, kept in by_class.items():
            names = self.colors.colors(image_HWC, kept) if label in colored and kept else [None] * len(kept)
            objects[label] = [Found(d.box, color) for d, color in zip(kept, names, strict=True)]
        return objects


def _plugin(path: str, options: Mapping[str, Any] | None, field: str) -> Any:
    what = f"The {field} of the reward 'geneval'"
    return construct(import_class(path, what), dict(options or {}), what)
