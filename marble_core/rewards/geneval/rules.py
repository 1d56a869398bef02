"""GenEval: are the wanted objects there, so many, of that colour, in that place? Rules of docs/rewards.md, section 4.

The rules see objects, not images: a detector (a seam: the demo's shapes, or Mask2Former) finds them and a colour classifier
names their colours. ``partial`` is what flow_grpo, DiffusionNFT and MARBLE train on; ``strict`` and ``official`` are 0 or 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from marble_core.config.imports import import_class
from marble_core.prompts.metadata import excluded, included
from marble_core.rewards.geneval.boxes import Box, iou, relations
from marble_core.rewards.geneval.card import CARD
from marble_core.rewards.geneval.sharing import Found, Handed, Objects, Wishes, each_alone, shared_out, totals
from marble_core.rewards.geneval.vocabulary import CLIP_COLORS, MASK2FORMER, PLUGINS
from marble_core.rewards.geneval.wishes import MAX_OBJECTS, unknown_name
from marble_core.rewards.registry import construct
from marble_core.types import MarbleError, Prompt

RULES = ("partial", "strict", "official")


@dataclass(frozen=True)
class Detection:
    """One object. ``mask`` is (H, W) bool, or None where the detector has only boxes."""

    label: str
    score: float
    box: Box
    mask: np.ndarray | None = None


class Detector(Protocol):
    """It may also have ``detect_many`` (images_NHWC -> an iterable of each image's objects), which is then used, and the class
    attribute ``classes``, all that it knows: a prompt that wants another is refused, already by prepare (vocabulary.py)."""

    def detect(self, image_HWC: np.ndarray) -> list[Detection]:
        """Objects of every class it knows in a uint8 RGB image; what fits no class may come as a class of its own."""
        ...

    def self_check(self) -> None:
        """Raise MarbleError where an image with known objects is read wrongly."""
        ...


class ColorClassifier(Protocol):
    """It may also have the class attribute ``color_names``, all that it knows, likewise."""

    def colors(self, image_HWC: np.ndarray, detections: Sequence[Detection]) -> list[str]:
        """The colour of each detection, all of one class."""
        ...

    def self_check(self) -> None: ...


def partial(
    include: Wishes,
    objects: Objects,
    exclude: Wishes = (),
    clip: bool = True,
    fix_position: bool = True,
    share: bool = True,
) -> float:
    """Mean over the conditions of all wanted objects: at most 1; at least 0 with ``clip``, else -14 for one object.

    ``clip`` keeps a count's term 1 - |wanted - found| / wanted from going below 0. ``fix_position`` gives a wrong position 0; the
    released rules give 0 and 1, so that it costs half. With ``share`` wishes of one class share out its objects, in the best of
    all ways; the released rules hand every wish all of them, so that two wishes of one class cannot both be met. An excluded
    class that is not also wanted (the demo's clutter; GenEval's own metadata has none) adds a condition that failed where it is
    found, and nothing where it is not.
    """
    wanted = totals(include)
    counts = []
    for wish in include:
        count = wanted[wish["class"]] if share else wish["count"]
        term = 1 - abs(count - len(objects.get(wish["class"], ()))) / count
        counts.append(max(0.0, term) if clip else term)
    failed = [0.0 for wish in exclude if wish["class"] not in wanted and _too_many(wish, objects)]
    values = []
    for handed in (shared_out if share else each_alone)(include, objects, exact=True):
        terms = _terms(include, handed, counts, fix_position) + failed
        values.append(float(np.mean(terms)) if terms else 0.0)
    return max(values)


def strict(include: Wishes, objects: Objects, share: bool = True) -> float:
    """1 where every count is exact and every colour and position right. ``exclude`` is not looked at."""
    return float(_fulfilled(include, objects, exact=True, share=share))


def official(include: Wishes, exclude: Wishes, objects: Objects, share: bool = True) -> float:
    """GenEval's ``correct``: at least the wanted objects (the best ones are judged), and nothing excluded."""
    return float(
        _fulfilled(include, objects, exact=False, share=share) and not any(_too_many(wish, objects) for wish in exclude)
    )


def _terms(include: Wishes, handed: Handed, counts: Sequence[float], fix_position: bool) -> list[float]:
    """The conditions of one way to hand out the objects, given each wish's count term."""
    terms: list[float] = []
    matched: Handed = []
    for wish, found, count_term in zip(include, handed, counts, strict=True):
        terms.append(count_term)
        if found is None:
            if "color" in wish or "position" in wish:
                terms.append(0.0)
            matched.append(None)
            continue
        right = True
        if "color" in wish:
            colored = sum(item.color == wish["color"] for item in found)
            terms.append(1 - abs(wish["count"] - colored) / wish["count"])
            right = colored == wish["count"]
        if "position" in wish and right:
            relation, index = wish["position"]
            right = _all_stand(found, relation, matched[index])
            if fix_position or matched[index] is None:
                terms.append(float(right))
            else:
                terms.extend([1.0] if right else [0.0, 1.0])
        matched.append(found if right else None)
    return terms


def _fulfilled(include: Wishes, objects: Objects, exact: bool, share: bool) -> bool:
    return any(_all_right(include, handed) for handed in (shared_out if share else each_alone)(include, objects, exact))


def _all_right(include: Wishes, handed: Handed) -> bool:
    for wish, found in zip(include, handed, strict=True):
        if found is None or any("color" in wish and item.color != wish["color"] for item in found):
            return False
        if "position" in wish:
            relation, index = wish["position"]
            if not _all_stand(found, relation, handed[index]):
                return False
    return True


def _too_many(wish: Mapping[str, Any], objects: Objects) -> bool:
    return len(objects.get(wish["class"], ())) >= wish["count"]


def _all_stand(found: Sequence[Found], relation: str, others: Sequence[Found] | None) -> bool:
    return others is not None and all(relation in relations(item.box, other.box) for item in found for other in others)


class GenEval:
    """Partial score, in [0, 1] with ``clip``, and beside it ``strict`` and ``official``; applies to prompts that have ``include``.

    ``detector`` and ``colors`` are import paths of a Detector and a ColorClassifier, constructed with their options. Colours are
    named by ``colors``, else by the detector where it can, else by CLIP. ``rule`` makes another of the three the reward.

    ``published`` restores what flow_grpo, DiffusionNFT and MARBLE released: no ``clip``, no ``fix_position``, ``swap_channels``
    (their detector sees red as blue), no ``quick_gelu`` in the colours' CLIP, clutter that costs nothing, and wishes of one class
    that do not share its objects; the first three, and ClipColors' ``quick_gelu``, can also be set one by one. Objects count above ``threshold`` (``counting_threshold`` under the tag counting), the best
    ``max_objects`` of a class, without those that overlap a better one by an IoU of ``max_overlap`` (1: all stay).
    """

    name = "geneval"
    card = CARD

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
        max_objects: int = MAX_OBJECTS,
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
        return bool(included(prompt))

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        """(N, 3): the reward, and the two other rules' values."""
        for prompt in prompts:
            self._check_names(prompt)
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
        least = self.counting_threshold if prompt.metadata.get("tag") == "counting" else self.threshold
        colored = {wish["class"] for wish in included(prompt) if "color" in wish}
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
        share = not self.published
        include, exclude = included(prompt), excluded(prompt)
        clutter = () if self.published else exclude
        values = {
            "partial": partial(include, objects, clutter, self.clip, self.fix_position, share),
            "strict": strict(include, objects, share),
            "official": official(include, exclude, objects, share),
        }
        return [values[rule] for rule in (self.rule, *self.side)]

    def _check_names(self, prompt: Prompt) -> None:
        """A class or a colour that cannot be found would score 0 for ever."""
        known = getattr(self.detector, "classes", None), getattr(self.colors, "color_names", None)
        if wrong := unknown_name(prompt, *known):
            raise MarbleError(f"The prompt {prompt.text!r}: {wrong}.")


def _plugin(path: str, options: Mapping[str, Any] | None, field: str) -> Any:
    what = f"The {field} of the reward 'geneval'"
    return construct(import_class(path, what), dict(options or {}), what, [PLUGINS[field]])
