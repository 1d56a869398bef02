"""Prompts of the synthetic world, from its three sources, and the scenes that each of them describes. No torch.

The world is small enough to be listed whole: every prompt text of a source is one ``Entry`` of its catalogue, sorted by kind.
A third of the texts is held out by a hash of the text, so that training and held-out prompts are disjoint for every seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from random import Random
from typing import Any

from marble_core.demo.scenes import COLORS, COLUMN, PALETTE, ROW, SHAPES, Pattern, Point, Scene, Shapes, Thing, Word
from marble_core.prompts.kinds import apportion, is_held_out
from marble_core.types import SOURCES, MarbleError, Prompt

NUMBERS = {2: "two", 3: "three", 4: "four"}
WORDS = [
    "CAT",
    "DOG",
    "SUN",
    "CAR",
    "BUS",
    "MAP",
    "TEA",
    "CUP",
    "HAT",
    "PEN",
    "KEY",
    "BOX",
    "JAM",
    "ICE",
    "SKY",
    "SEA",
    "OWL",
    "FOX",
    "BEE",
    "ANT",
    "ZOO",
    "TOY",
    "RED",
    "BIG",
    "HOT",
    "NEW",
    "TOP",
    "YES",
    "OPEN",
    "STOP",
    "EXIT",
    "SALE",
    "CAFE",
    "BOOK",
    "FISH",
    "MILK",
    "CAKE",
    "TAXI",
    "PARK",
    "SHOP",
    "FOOD",
    "GOLD",
    "BLUE",
    "LOVE",
    "HOME",
    "MOON",
    "STAR",
    "TREE",
    "BIRD",
    "WOLF",
    "DUCK",
    "FROG",
    "LION",
    "BEAR",
    "RAIN",
    "SNOW",
    "WIND",
    "FIRE",
    "LAKE",
    "ROCK",
    "SHIP",
    "BIKE",
    "ROAD",
    "KING",
    "GAME",
    "JAZZ",
    "QUIZ",
]
PLAIN_SIGNS = (  # (letters, ground) of a sign whose prompt names no colour
    ("white", "red"),
    ("white", "blue"),
    ("white", "green"),
    ("white", "black"),
    ("black", "white"),
    ("black", "yellow"),
    ("white", "purple"),
    ("red", "white"),
    ("blue", "white"),
    ("yellow", "black"),
)
TEXT_COLORS = ("red", "blue", "green", "black", "purple")
DARK_LETTERS_ON = ("white", "yellow", "orange")
BLOB = "blob"  # the class of a thing that is no clear shape
GROUNDS = ("white", "white", "white", "black")  # of geneval's images, whose prompts do not name it

# Shares of the kinds in a source: about equal care for each, and few enough of the kinds that have few texts.
SHARES = {
    "general": {"single": 0.45, "pair": 0.30, "pattern": 0.25},
    "ocr": {"plain": 0.30, "ground": 0.40, "letters": 0.30},
    "geneval": {"colors": 0.08, "counting": 0.27, "color_attr": 0.25, "position": 0.40},
}


@dataclass(frozen=True)
class Entry:
    """A prompt and the scenes that fulfil it, as likely as they are many."""

    prompt: Prompt
    scenes: tuple[Scene, ...]


def generate(source: str, count: int, seed: int, held_out: bool) -> list[Prompt]:
    """``count`` prompts of a source, the same for the same arguments; training and held-out texts are disjoint.

    Kinds (``single``, ``counting`` ...) come in the proportions of SHARES. A text is repeated only where its kind has fewer
    texts than are asked for, and then every text of that kind comes equally often, up to one.
    """
    return [entry.prompt for entry in entries(source, count, seed, held_out)]


def entries(source: str, count: int, seed: int, held_out: bool) -> list[Entry]:
    """Like ``generate``, with the scenes."""
    if source not in SOURCES:
        raise MarbleError(f"The demo has no source {source!r}; choose one of {', '.join(SOURCES)}.")
    rng = Random(f"{source}/{seed}/{held_out}")
    chosen: list[Entry] = []
    for kind, wanted in apportion(SHARES[source], count).items():
        texts = [entry for entry in catalogue(source)[kind] if is_held_out(entry.prompt.text) == held_out]
        while wanted > 0:
            drawn = rng.sample(texts, min(wanted, len(texts)))
            chosen += drawn
            wanted -= len(drawn)
    rng.shuffle(chosen)
    return chosen


@cache
def catalogue(source: str) -> dict[str, tuple[Entry, ...]]:
    """Every entry of a source by kind; no text occurs twice."""
    everything = {"general": _general, "ocr": _ocr, "geneval": _geneval}[source]
    kinds: dict[str, dict[str, Entry]] = {kind: {} for kind in SHARES[source]}
    for kind, entry in everything():
        kinds[kind][entry.prompt.text] = entry
    return {kind: tuple(found.values()) for kind, found in kinds.items()}


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _phrase(thing: Thing) -> str:
    return _with_article(f"{thing.color} {thing.shape}")


def _things() -> list[Thing]:
    return [Thing(color, shape) for color, shape in product(COLORS, SHAPES)]


def _general() -> Iterator[tuple[str, Entry]]:
    for thing, ground, size in product(_things(), PALETTE, (None, "small", "big")):
        if ground != thing.color:
            sized = f"{size} {thing.color} {thing.shape}" if size else f"{thing.color} {thing.shape}"
            text = f"{_with_article(sized)} on a {ground} background"
            yield "single", Entry(Prompt(text, "general"), (Shapes((thing,), ground, size=size),))
    for one, other, ground in product(_things(), _things(), PALETTE):
        if ground not in (one.color, other.color):
            text = f"{_phrase(one)} and {_phrase(other)} on {ground}"
            scenes = (Shapes((one, other), ground), Shapes((other, one), ground))
            yield "pair", Entry(Prompt(text, "general"), scenes)
    for color, ground in product(COLORS, PALETTE):
        if color != ground:
            texts = {
                "stripes": f"{color} and {ground} stripes",
                "checks": f"{color} and {ground} checks",
                "ring": f"{_with_article(color)} ring on {ground}",
            }
            for kind, text in texts.items():
                yield "pattern", Entry(Prompt(text, "general"), (Pattern(kind, color, ground),))


def _ocr() -> Iterator[tuple[str, Entry]]:
    for word in WORDS:
        plain = tuple(Word(word, letters, ground) for letters, ground in PLAIN_SIGNS)
        yield "plain", Entry(Prompt(f'a sign that says "{word}"', "ocr", {"text": word}), plain)
        for ground in PALETTE:
            letters = "black" if ground in DARK_LETTERS_ON else "white"
            text = f'{_with_article(ground)} sign that says "{word}"'
            yield "ground", Entry(Prompt(text, "ocr", {"text": word}), (Word(word, letters, ground),))
        for letters in TEXT_COLORS:
            text = f'{letters} text that says "{word}"'
            yield "letters", Entry(Prompt(text, "ocr", {"text": word}), (Word(word, letters, "white"),))


def _geneval() -> Iterator[tuple[str, Entry]]:
    for thing in _things():
        yield "colors", _geneval_entry(_phrase(thing), "colors", [_wanted(thing)], [(thing,)])
        for count, number in NUMBERS.items():
            text = f"{number} {thing.color} {thing.shape}s"
            yield "counting", _geneval_entry(text, "counting", [_wanted(thing, count)], [(thing,) * count])
    for one, other in product(_things(), _things()):
        # GenEval's own prompts name two classes, never one class twice.
        if one.color == other.color or one.shape == other.shape:
            continue
        both = [_wanted(one), _wanted(other)]
        text = f"{_phrase(one)} and {_phrase(other)}"
        yield "color_attr", _geneval_entry(text, "color_attr", both, [(one, other), (other, one)])
        for relation in ("left of", "right of", "above", "below"):
            order = (one, other) if relation in ("left of", "above") else (other, one)
            layout = ROW if relation in ("left of", "right of") else COLUMN
            # GenEval's position refers to an earlier entry: "A left of B" lists B first.
            placed = [_wanted(other), {**_wanted(one), "position": [relation, 0]}]
            text = f"{_phrase(one)} {relation} {_phrase(other)}"
            yield "position", _geneval_entry(text, "position", placed, [order], layout)


def _wanted(thing: Thing, count: int = 1) -> dict[str, Any]:
    return {"class": thing.shape, "count": count, "color": thing.color}


def _geneval_entry(
    text: str,
    tag: str,
    include: list[dict[str, Any]],
    arrangements: list[tuple[Thing, ...]],
    layout: tuple[Point, ...] | None = None,
) -> Entry:
    """Excludes one more than wanted when counting, as GenEval does, and (ours) every class that is not wanted at all."""
    clutter = [{"class": name, "count": 1} for name in (*SHAPES, BLOB) if name not in {wish["class"] for wish in include}]
    surplus = [{"class": wish["class"], "count": wish["count"] + 1} for wish in include if tag == "counting"]
    prompt = Prompt(text, "geneval", {"tag": tag, "include": include, "exclude": [*surplus, *clutter]})
    return Entry(prompt, tuple(Shapes(things, ground, layout) for things in arrangements for ground in GROUNDS))
