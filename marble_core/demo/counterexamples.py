"""Counterexamples for the demo's reward models: false descriptions, scenes that a prompt does not describe, spoiled images."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from marble_core.demo.scenes import COLORS, LAYOUTS, PALETTE, SHAPES, SIZE, Pattern, Scene, Shapes, Thing, Word

LETTERS = "ABCDEFGHIJKLMNOPRSTUWXY"
VOCABULARY = [  # sets of words that can stand for each other in a false description
    list(PALETTE),
    list(SHAPES),
    [f"{shape}s" for shape in SHAPES],
    ["two", "three", "four"],
    ["left", "right"],
    ["above", "below"],
    ["stripes", "checks"],
    ["small", "big"],
]


def misdescribe(text: str, rng: Random) -> str:
    """A prompt like this one that does not describe its image: one word replaced, or two colours exchanged."""
    if '"' in text and rng.random() < 0.6:
        start, end = text.index('"') + 1, text.rindex('"')
        place = rng.randrange(start, end)
        letter = rng.choice([c for c in LETTERS if c != text[place]])
        return text[:place] + letter + text[place + 1 :]
    words = text.split()
    colored = [i for i, word in enumerate(words) if word in PALETTE]
    if len(colored) == 2 and rng.random() < 0.35:
        one, other = colored
        words[one], words[other] = words[other], words[one]
    else:
        places = [(i, group) for i, word in enumerate(words) for group in VOCABULARY if word in group]
        if not places:
            return text.replace("sign", "star")
        place, group = rng.choice(places)
        words[place] = rng.choice([word for word in group if word != words[place]])
    for i, word in enumerate(words[:-1]):
        if word in ("a", "an"):
            words[i] = "an" if words[i + 1][0] in "aeiou" else "a"
    return " ".join(words)


def alter(scene: Scene, rng: Random) -> Scene:
    """A scene that differs where the prompt says something: a thing gone, added, recoloured, reshaped or misplaced."""
    other_ground = rng.choice([color for color in COLORS if color != scene.ground])
    match scene:
        case Word(text=text):
            place = rng.randrange(len(text))
            letter = rng.choice([c for c in LETTERS if c != text[place]])
            changed = replace(scene, text=text[:place] + letter + text[place + 1 :])
            shorter = replace(scene, text=text[:place] + text[place + 1 :])
            words: list[Scene] = [changed, changed, shorter, Shapes((), scene.ground)]
            return rng.choice(words)
        case Pattern():
            kind = rng.choice([kind for kind in ("stripes", "checks", "ring") if kind != scene.kind])
            patterns: list[Scene] = [replace(scene, kind=kind), replace(scene, ground=other_ground), Shapes((), scene.ground)]
            return rng.choice(patterns)
        case Shapes():
            return _alter_things(scene, other_ground, rng)


def _alter_things(scene: Shapes, other_ground: str, rng: Random) -> Shapes:
    things = list(scene.things)
    place = rng.randrange(len(things))
    thing = things[place]
    change = rng.choice(["drop", "add", "add", "recolor", "reshape", "order", "ground"])
    if change == "order" and scene.layout:
        return replace(scene, things=scene.things[::-1])
    if change == "ground":
        return replace(scene, ground=other_ground)
    if change == "drop":
        rest = (*things[:place], *things[place + 1 :])
        return Shapes(rest if rng.random() < 0.7 else (), scene.ground, size=scene.size)
    if change in ("add", "order") and len(things) < max(LAYOUTS):
        new = Thing(rng.choice(list(COLORS)), rng.choice(SHAPES)) if rng.random() < 0.5 else thing
        return Shapes((*things, new), scene.ground)
    if change == "reshape":
        things[place] = replace(thing, shape=rng.choice([shape for shape in SHAPES if shape != thing.shape]))
    else:
        things[place] = replace(thing, color=rng.choice([color for color in COLORS if color != thing.color]))
    return replace(scene, things=tuple(things))


def spoil(picture: Image.Image, rng: Random) -> Image.Image:
    """The image made worse in one of seven ways that a policy might be tempted by."""
    way = rng.choice(["blur", "noise", "blotches", "washed", "cropped", "saturated", "emptied"])
    if way == "blur":
        return picture.filter(ImageFilter.GaussianBlur(rng.uniform(1.2, 3)))
    if way == "noise":
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(12, 40), (SIZE, SIZE, 3))
        return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
    if way == "blotches":
        layer = picture.copy()
        pen = ImageDraw.Draw(layer)
        for _ in range(rng.randint(3, 8)):
            x, y, radius = rng.uniform(0, SIZE), rng.uniform(0, SIZE), rng.uniform(3, 10)
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=PALETTE[rng.choice(list(PALETTE))])
        return Image.blend(picture, layer.filter(ImageFilter.GaussianBlur(rng.uniform(1, 3))), rng.uniform(0.4, 0.9))
    if way == "washed":
        return ImageEnhance.Contrast(picture).enhance(rng.uniform(0.25, 0.65))
    if way == "cropped":
        side = rng.uniform(0.4, 0.7) * SIZE
        left, top = rng.uniform(0, SIZE - side), rng.uniform(0, SIZE - side)
        return picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    if way == "saturated":
        tint = Image.new("RGB", picture.size, COLORS[rng.choice(list(COLORS))])
        vivid = ImageEnhance.Contrast(ImageEnhance.Color(picture).enhance(3)).enhance(2)
        return Image.blend(vivid, tint, rng.uniform(0.15, 0.5))
    ground = Image.new("RGB", picture.size, picture.getpixel((1, 1)))
    return Image.blend(picture, ground, rng.uniform(0.6, 1))
