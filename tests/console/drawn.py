"""Pictures of our own to show inferd with, drawn with Pillow: landscapes, still lifes and faces."""

import io
import math
import random
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageFilter

SIZE = (960, 720)
SMOOTH = 2
"""Drawn so many times larger, then made smaller: no edge has steps."""
Colour = tuple[int, int, int]


def all_pictures() -> dict[str, bytes]:
    """Return each as a JPEG, by file name; the same ones each time."""
    drawn: dict[str, Callable[[], Image.Image]] = {
        "sunset.jpg": lambda: _landscape(1, ((38, 27, 71), (236, 112, 82)), (255, 214, 140), 3),
        "dusk.jpg": lambda: _landscape(2, ((30, 22, 60), (214, 96, 92)), (255, 190, 130), 3),
        "morning.jpg": lambda: _landscape(
            3, ((104, 170, 220), (247, 226, 190)), (255, 250, 220), 4
        ),
        "mountains.jpg": lambda: _landscape(9, ((86, 140, 190), (214, 232, 240)), None, 5),
        "night.jpg": lambda: _landscape(5, ((6, 9, 28), (30, 44, 84)), (235, 238, 245), 3),
        "portrait.jpg": lambda: _portraits(11, 1),
        "couple.jpg": lambda: _portraits(12, 2),
        "family.jpg": lambda: _portraits(13, 3),
        "fruit.jpg": lambda: _fruit(21),
        "balloons.jpg": lambda: _balloons(22),
    }
    return {name: _jpeg(draw()) for name, draw in drawn.items()}


def _jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88)
    return out.getvalue()


def _sky(top: Colour, bottom: Colour) -> Image.Image:
    column = Image.new("RGB", (1, 256))
    for y in range(256):
        column.putpixel((0, y), _between(top, bottom, y / 255))
    return column.resize((SIZE[0] * SMOOTH, SIZE[1] * SMOOTH), Image.Resampling.BICUBIC)


def _between(one: Colour, other: Colour, part: float) -> Colour:
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _finish(image: Image.Image) -> Image.Image:
    return image.resize(SIZE, Image.Resampling.LANCZOS)


def _landscape(
    seed: int, sky: tuple[Colour, Colour], sun: Colour | None, ridges: int
) -> Image.Image:
    chance = random.Random(seed)
    image = _sky(*sky)
    wide, high = image.size
    if sun is not None:
        x, y, r = chance.uniform(0.3, 0.7) * wide, chance.uniform(0.28, 0.42) * high, 0.07 * wide
        glow = Image.new("L", image.size, 0)
        ImageDraw.Draw(glow).ellipse((x - 2 * r, y - 2 * r, x + 2 * r, y + 2 * r), fill=120)
        glow = glow.filter(ImageFilter.GaussianBlur(r))
        ImageDraw.Draw(glow).ellipse((x - r, y - r, x + r, y + r), fill=255)
        image.paste(sun, mask=glow)
    draw = ImageDraw.Draw(image)
    for ridge in range(ridges):
        depth = (ridge + 1) / ridges
        base = high * (0.45 + 0.45 * depth)
        waves = [(chance.uniform(1, 3) * 2**n, chance.uniform(0, 6.3)) for n in range(5)]
        line = [
            (
                x,
                base
                - high
                * 0.11
                * sum(math.sin(x / wide * f * 2 + p) / 1.7**n for n, (f, p) in enumerate(waves)),
            )
            for x in range(0, wide + 8, 8)
        ]
        colour = _between(sky[1], (12, 22, 34), 0.35 + 0.6 * depth)
        draw.polygon([(0, high), *line, (wide, high)], fill=colour)
    return _finish(image)


def _portraits(seed: int, number: int) -> Image.Image:
    chance = random.Random(seed)
    image = _sky((176, 196, 208), (226, 222, 210))
    wide, high = image.size
    for at in range(number):
        size = high * (0.30 if number == 1 else 0.23 if number == 2 else 0.19)
        x = wide * (at + 1) / (number + 1)
        _person(image, x, high * chance.uniform(0.42, 0.48), size, chance)
    return _finish(image)


def _person(image: Image.Image, x: float, y: float, r: float, chance: random.Random) -> None:
    skin = chance.choice([(224, 182, 150), (240, 204, 176), (198, 150, 116), (172, 124, 92)])
    hair = chance.choice([(52, 36, 26), (96, 62, 34), (30, 26, 28), (150, 112, 60)])
    shirt = chance.choice([(52, 94, 140), (150, 62, 66), (66, 118, 92), (110, 84, 134)])
    draw = ImageDraw.Draw(image)
    draw.ellipse((x - 1.5 * r, y + 1.25 * r, x + 1.5 * r, y + 4.5 * r), fill=shirt)
    draw.rectangle(
        (x - 0.34 * r, y + 0.7 * r, x + 0.34 * r, y + 1.5 * r),
        fill=_between(skin, (60, 30, 20), 0.22),
    )
    draw.ellipse((x - 0.92 * r, y - 1.32 * r, x + 0.92 * r, y + 0.6 * r), fill=hair)
    face = Image.new("L", image.size, 0)
    ImageDraw.Draw(face).ellipse((x - 0.78 * r, y - 1.05 * r, x + 0.78 * r, y + 1.08 * r), fill=255)
    shade = Image.new("RGB", image.size, skin)
    paint = ImageDraw.Draw(shade)
    dark = _between(skin, (70, 36, 26), 0.55)
    light = _between(skin, (255, 244, 232), 0.45)
    # Sockets in shadow; cheeks, forehead and the ridge of the nose in light: so a cascade sees it.
    for side in (-1, 1):
        paint.ellipse(
            (
                x + side * 0.33 * r - 0.25 * r,
                y - 0.34 * r,
                x + side * 0.33 * r + 0.25 * r,
                y + 0.04 * r,
            ),
            fill=dark,
        )
        paint.ellipse(
            (
                x + side * 0.42 * r - 0.24 * r,
                y + 0.14 * r,
                x + side * 0.42 * r + 0.24 * r,
                y + 0.52 * r,
            ),
            fill=light,
        )
    paint.ellipse((x - 0.5 * r, y - 0.95 * r, x + 0.5 * r, y - 0.42 * r), fill=light)
    paint.polygon(
        [
            (x - 0.07 * r, y - 0.3 * r),
            (x + 0.07 * r, y - 0.3 * r),
            (x + 0.15 * r, y + 0.3 * r),
            (x - 0.15 * r, y + 0.3 * r),
        ],
        fill=light,
    )
    paint.ellipse((x - 0.2 * r, y + 0.3 * r, x + 0.2 * r, y + 0.42 * r), fill=dark)
    paint.ellipse((x - 0.42 * r, y + 0.78 * r, x + 0.42 * r, y + 0.95 * r), fill=dark)
    shade = shade.filter(ImageFilter.GaussianBlur(0.085 * r))
    paint = ImageDraw.Draw(shade)
    for side in (-1, 1):
        cx, cy = x + side * 0.33 * r, y - 0.14 * r
        paint.ellipse(
            (cx - 0.17 * r, cy - 0.085 * r, cx + 0.17 * r, cy + 0.085 * r), fill=(238, 234, 228)
        )
        paint.ellipse(
            (cx - 0.09 * r, cy - 0.09 * r, cx + 0.09 * r, cy + 0.09 * r), fill=(48, 34, 26)
        )
        paint.line(
            (cx - 0.2 * r, cy - 0.06 * r, cx, cy - 0.11 * r, cx + 0.2 * r, cy - 0.06 * r),
            fill=(40, 26, 20),
            width=max(2, round(0.045 * r)),
        )
        paint.line(
            (cx - 0.24 * r, cy - 0.25 * r, cx, cy - 0.33 * r, cx + 0.24 * r, cy - 0.25 * r),
            fill=hair,
            width=max(3, round(0.085 * r)),
        )
    paint.ellipse((x - 0.3 * r, y + 0.57 * r, x + 0.3 * r, y + 0.75 * r), fill=(150, 66, 62))
    paint.line(
        (x - 0.29 * r, y + 0.655 * r, x + 0.29 * r, y + 0.655 * r),
        fill=(96, 36, 36),
        width=max(2, round(0.03 * r)),
    )
    image.paste(shade.filter(ImageFilter.GaussianBlur(0.012 * r)), mask=face)
    top = Image.new("L", image.size, 0)
    ImageDraw.Draw(top).pieslice(
        (x - 0.85 * r, y - 1.22 * r, x + 0.85 * r, y + 0.2 * r), 190, 350, fill=255
    )
    ImageDraw.Draw(top).ellipse((x - 0.62 * r, y - 0.82 * r, x + 0.62 * r, y + 0.9 * r), fill=0)
    image.paste(hair, mask=top)


def _fruit(seed: int) -> Image.Image:
    chance = random.Random(seed)
    image = _sky((232, 222, 204), (190, 160, 128))
    wide, high = image.size
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0.68 * high, wide, high), fill=(122, 84, 58))
    for colour, at in (
        ((200, 44, 44), 0.25),
        ((238, 150, 40), 0.45),
        ((120, 168, 60), 0.62),
        ((226, 190, 52), 0.78),
    ):
        r = chance.uniform(0.085, 0.105) * wide
        x, y = at * wide, 0.74 * high - r * 0.5
        for step in range(40):
            part = step / 40
            s = r * (1 - part)
            shift = r * 0.35 * part
            draw.ellipse(
                (x - s - shift, y - s - shift, x + s - shift, y + s - shift),
                fill=_between(_between(colour, (40, 20, 20), 0.35), (255, 250, 240), part * 0.8),
            )
    return _finish(image)


def _balloons(seed: int) -> Image.Image:
    chance = random.Random(seed)
    image = _sky((92, 160, 222), (220, 238, 248))
    wide, high = image.size
    draw = ImageDraw.Draw(image)
    for at in range(6):
        r = chance.uniform(0.05, 0.1) * wide
        x, y = (at + 0.7) / 6.4 * wide, chance.uniform(0.2, 0.6) * high
        colour = chance.choice([(214, 66, 66), (240, 176, 58), (70, 140, 96), (92, 92, 180)])
        for stripe in range(6):
            s = r * (1 - stripe / 6)
            shade = colour if stripe % 2 else (250, 246, 236)
            draw.ellipse((x - s, y - r * 1.1, x + s, y + r * 1.1), fill=shade)
        draw.line((x - 0.4 * r, y + r, x - 0.16 * r, y + 1.5 * r), fill=(70, 60, 50), width=3)
        draw.line((x + 0.4 * r, y + r, x + 0.16 * r, y + 1.5 * r), fill=(70, 60, 50), width=3)
        draw.rectangle((x - 0.18 * r, y + 1.5 * r, x + 0.18 * r, y + 1.75 * r), fill=(120, 84, 50))
    return _finish(image)
