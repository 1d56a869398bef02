"""How scenes of the synthetic world are drawn, with PIL only and no font file.

Coordinates and radii are in pixels of the finished 64 x 64 image; everything is drawn ``OVERSAMPLING`` times larger and
reduced, so that edges are smooth. The numbers are those that the demo model was trained with (docs/demo_model.md, section 1).
"""

from __future__ import annotations

import math
from functools import cache
from random import Random

from PIL import Image, ImageDraw, ImageFont

from marble_core.demo.scenes import LAYOUTS, PALETTE, RGB, SIZE, Pattern, Point, Scene, Shapes, Word

OVERSAMPLING = 4

RADII: dict[int, tuple[float, float]] = {1: (13, 19), 2: (9, 12.5), 3: (8.5, 11), 4: (8.5, 11)}
SHIFTS: dict[int, float] = {1: 5, 2: 3, 3: 2.5, 4: 2.5}
SIZES: dict[str, tuple[float, float]] = {"small": (7, 9.5), "big": (21, 25)}

COLOR_JITTER = 8.0  # grey levels: a colour is a region, not a point
STROKE = 5  # thickens the letters of PIL's only built-in font; pixels of the large canvas
TEXT_WIDTH = 61


def draw(scene: Scene, rng: Random) -> Image.Image:
    """One 64 x 64 RGB image of the scene; where exactly things stand, their size and shade are drawn from ``rng``."""
    side = SIZE * OVERSAMPLING
    canvas = Image.new("RGB", (side, side), _shade(scene.ground, rng))
    match scene:
        case Shapes():
            _draw_things(canvas, scene, rng)
        case Word():
            _draw_word(canvas, scene, rng)
        case Pattern():
            _draw_pattern(canvas, scene, rng)
    return canvas.resize((SIZE, SIZE), Image.Resampling.BOX)


def draw_shape(canvas: Image.Image, shape: str, center: Point, radius: float, fill: RGB) -> None:
    """Draw one shape on the large canvas; ``center`` and ``radius`` in pixels of the finished image."""
    pen = ImageDraw.Draw(canvas)
    x, y, r = (OVERSAMPLING * v for v in (*center, radius))
    match shape:
        case "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        case "square":
            pen.rectangle((x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r), fill=fill)
        case "triangle":
            pen.polygon(_around(x, y + 0.22 * r, [1.1 * r] * 3), fill=fill)
        case "star":
            pen.polygon(_around(x, y, [1.12 * r, 0.5 * r] * 5), fill=fill)
        case _:
            raise ValueError(f"no such shape: {shape}")


def _around(x: float, y: float, radii: list[float]) -> list[Point]:
    """Corners at equal angles around a centre, the first one above it."""
    angles = (2 * math.pi * i / len(radii) for i in range(len(radii)))
    return [(x + r * math.sin(a), y - r * math.cos(a)) for r, a in zip(radii, angles, strict=True)]


def _shade(color: str, rng: Random) -> RGB:
    red, green, blue = (int(min(255, max(0, channel + rng.uniform(-COLOR_JITTER, COLOR_JITTER)))) for channel in PALETTE[color])
    return red, green, blue


def _draw_things(canvas: Image.Image, scene: Shapes, rng: Random) -> None:
    count = len(scene.things)
    if not count:
        return
    layout = scene.layout or rng.choice(LAYOUTS[count])
    radius = rng.uniform(*(SIZES[scene.size] if scene.size else RADII[count]))
    shift = SHIFTS[count]
    for thing, (x, y) in zip(scene.things, layout, strict=True):
        own_radius = radius * rng.uniform(0.93, 1.07)
        center = (x + rng.uniform(-shift, shift), y + rng.uniform(-shift, shift))
        draw_shape(canvas, thing.shape, center, own_radius, _shade(thing.color, rng))


@cache
def _font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(pixels)


def _draw_word(canvas: Image.Image, scene: Word, rng: Random) -> None:
    pen = ImageDraw.Draw(canvas)
    pixels = (26 if len(scene.text) <= 3 else 23) * OVERSAMPLING
    left, top, right, bottom = pen.textbbox((0, 0), scene.text, font=_font(pixels), stroke_width=STROKE)
    if right - left > TEXT_WIDTH * OVERSAMPLING:
        pixels = int(pixels * TEXT_WIDTH * OVERSAMPLING / (right - left))
        left, top, right, bottom = pen.textbbox((0, 0), scene.text, font=_font(pixels), stroke_width=STROKE)
    width, height = right - left, bottom - top
    slack = max(0.0, ((SIZE - 2) * OVERSAMPLING - width) / 2)
    x = rng.uniform(-1, 1) * min(2.0 * OVERSAMPLING, slack)
    y = rng.uniform(-1, 1) * 3.0 * OVERSAMPLING
    fill = _shade(scene.letters, rng)
    corner = ((canvas.width - width) / 2 - left + x, (canvas.height - height) / 2 - top + y)
    pen.text(corner, scene.text, font=_font(pixels), fill=fill, stroke_width=STROKE, stroke_fill=fill)


def _draw_pattern(canvas: Image.Image, scene: Pattern, rng: Random) -> None:
    pen = ImageDraw.Draw(canvas)
    side, fill, ground = canvas.width, _shade(scene.color, rng), canvas.getpixel((0, 0))
    cell = 16 * OVERSAMPLING
    if scene.kind == "stripes":
        for x in range(0, side, cell):
            pen.rectangle((x, 0, x + cell // 2 - 1, side), fill=fill)
    elif scene.kind == "checks":
        for x in range(0, side, cell):
            for y in range(0, side, cell):
                if (x + y) // cell % 2:
                    pen.rectangle((x, y, x + cell - 1, y + cell - 1), fill=fill)
    else:
        outer = rng.uniform(19, 24) * OVERSAMPLING
        center_x, center_y = (side / 2 + rng.uniform(-3, 3) * OVERSAMPLING for _ in range(2))
        for radius, color in ((outer, fill), (0.65 * outer, ground)):
            pen.ellipse((center_x - radius, center_y - radius, center_x + radius, center_y + radius), fill=color)
