"""Wishes that GenEval cannot judge, told before an image is: by prepare for each line, by the scorer for names. No torch."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from marble_core.prompts.metadata import excluded, included, short
from marble_core.rewards.geneval.sharing import count_ways, totals
from marble_core.types import Prompt

MAX_OBJECTS = 16  # of a class, as in GenEval
MAX_WAYS = 1000  # to hand out the objects of an image: 720 for six, each with a place of its own
LISTED = 12  # names in a sentence


def unknown_name(prompt: Prompt, classes: Collection[str] | None, colors: Collection[str] | None) -> str | None:
    """The first class or colour that is not among the known ones, with the nearest of those; None where all are.

    What is not known of the detector (None) is not asked. Of ``exclude`` too: what is never found would exclude nothing.
    """
    for field, wishes in (("include", included(prompt)), ("exclude", excluded(prompt))):
        for i, wish in enumerate(wishes):
            for key, noun, known in (("class", "class", classes), ("color", "colour", colors)):
                if known is not None and key in wish and wish[key] not in known:
                    near = nearest(wish[key], known)
                    listed = ", ".join(list(known)[:LISTED]) + (", ..." if len(known) > LISTED else "")
                    hint = f"the nearest is {near!r}" if near else f"it knows {listed}"
                    return f"{field}[{i}].{key} is {short(wish[key])}, a {noun} that GenEval's detector does not know; {hint}"
    return None


def unmeetable(prompt: Prompt, max_objects: int, published: bool) -> str | None:
    """Why the right image would not be the best one for this prompt, and what to change; None where it is."""
    wanted = totals(included(prompt))
    for label, count in wanted.items():
        if count >= max_objects:
            return (
                f"'include' wants {short(count)} of {short(label)}, but only the {max_objects} surest of a class are kept. "
                f"More would look the same: ask for fewer, or set the reward's option max_objects to {short(count + 1)}"
            )
    for i, wish in enumerate(excluded(prompt)):
        if wish["count"] <= wanted[wish["class"]]:
            return (
                f"exclude[{i}] rules out {short(wish['count'])} of {short(wish['class'])}, of which 'include' wants "
                f"{wanted[wish['class']]}, so no image is right; correct one of them"
            )
    if published and len(wanted) < len(included(prompt)):
        return (
            "'include' names a class more than once, and the released rules ('published: true') hand each such wish all objects "
            "of the class. No image would be right: leave 'published' out, or name each class once"
        )
    if (ways := count_ways(included(prompt))) > MAX_WAYS:
        return (
            f"positions between objects of one class can be met in {ways} ways, more than the {MAX_WAYS} that are tried; "
            "ask for fewer objects of it"
        )
    return None


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that was meant: but for its case, as the last word of a longer one ("keyboard"), or by its letters."""
    folded = {other.casefold(): other for other in known}
    meant = name.strip().casefold()
    if meant in folded:
        return folded[meant]
    longer = [other for other in folded if other.endswith(f" {meant}")]
    near = longer or difflib.get_close_matches(meant, folded, n=1)
    return folded[near[0]] if near else None
