"""The captioned scenes in pixels: colours, outlines as signed distances, textures, backgrounds.

Arrays go only through operations that IEEE 754 rounds exactly (+ - * / sqrt min max floor), in float32, so that the
pixels are the same bits on every machine.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from miniclip.data.scenes.captions import Background, Scene, SceneObject

RGB = {
    "red": (0.86, 0.10, 0.12),
    "orange": (0.98, 0.52, 0.06),
    "yellow": (0.98, 0.90, 0.14),
    "green": (0.12, 0.66, 0.22),
    "blue": (0.12, 0.32, 0.90),
    "purple": (0.55, 0.17, 0.72),
    "white": (0.97, 0.97, 0.97),
    "black": (0.05, 0.05, 0.06),
}
# Muted and of middle lightness: every colour above stands out from every one of them.
TONE_RGB = {
    "grey": (0.50, 0.50, 0.51),
    "brown": (0.44, 0.35, 0.28),
    "beige": (0.68, 0.62, 0.50),
    "teal": (0.36, 0.53, 0.53),
    "pink": (0.72, 0.56, 0.60),
}
TEXTURE_PERIOD = 0.2  # half sides; 6.4 pixels at 64
RIM = 0.06  # radii
CELLS = 5  # a side of the grid behind a cloudy background


@lru_cache(maxsize=8)
def _axis(image_size: int) -> np.ndarray:
    """(image_size,) float32: the pixel centres in half sides, from -1 to 1."""
    return ((2 * np.arange(image_size) + 1) / image_size - 1).astype(np.float32)


def _turn(tilt: float) -> tuple[float, float]:
    """Cosine and sine from the tangent of the half angle: exactly rounded, unlike math.cos."""
    return (1 - tilt * tilt) / (1 + tilt * tilt), 2 * tilt / (1 + tilt * tilt)


def _clip(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.minimum(np.maximum(values, low), high)


def _wave(phase: np.ndarray) -> np.ndarray:
    """A triangle wave of period 1 in [-1, 1]."""
    return np.abs(phase - np.floor(phase) - 0.5) * 4 - 1


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to the outline, negative inside (a bound of it beyond corners); each shape fits the unit disc.

    u: (1 or H, W), v: (H, W), rightwards and downwards.
    """
    if shape == "circle":
        return np.sqrt(u * u + v * v) - 0.9
    if shape == "ring":
        return np.abs(np.sqrt(u * u + v * v) - 0.7) - 0.22
    if shape == "crescent":
        bite = u - 0.5
        square = v * v
        return np.maximum(np.sqrt(u * u + square) - 0.95, 0.78 - np.sqrt(bite * bite + square))
    side = np.abs(u)
    if shape == "triangle":
        return np.maximum(v - 0.5, side * 0.8660254 - v * 0.5 - 0.5)
    if shape == "square":
        return np.maximum(side, np.abs(v)) - 0.72
    if shape == "cross":
        height = np.abs(v)
        return np.maximum(np.maximum(side, height) - 0.94, np.minimum(side, height) - 0.3)
    if shape == "heart":
        # a square on its corner and two discs on its upper sides
        lobe_u, lobe_v = side - 0.37, v + 0.29
        lobes = np.sqrt(lobe_u * lobe_u + lobe_v * lobe_v) - 0.5232590
        return np.minimum((side + np.abs(v - 0.08)) * 0.7071068 - 0.5232590, lobes)
    if shape == "star":
        # Five mirrors fold the plane onto half a point: tip at (0, -1), notch at 36 degrees and 0.46.
        fold = np.maximum(side * 0.8090170 + v * 0.5877853, 0) * 2
        a, b = side - fold * 0.8090170, v - fold * 0.5877853
        fold = np.maximum(b * 0.5877853 - a * 0.8090170, 0) * 2
        a, b = np.abs(a + fold * 0.8090170), b - fold * 0.5877853
        return a * 0.9184542 - (b + 1) * 0.3955274
    raise AssertionError(shape)


def _texture(texture: str, x: np.ndarray, y: np.ndarray, sharpness: float) -> np.ndarray:
    """How much of the second tone each pixel takes, in [0, 1]. sharpness: pixels a period."""
    wave, down = _wave(x * (1 / TEXTURE_PERIOD)), _wave(y * (1 / TEXTURE_PERIOD))
    if texture == "dotted":
        a, b = wave + 1, down + 1
        wave = 0.9 - np.sqrt(a * a + b * b)
    elif texture == "checked":
        wave = wave * down
    return _clip(wave * (0.25 * sharpness) + 0.5, 0, 1)


def _paint(canvas: np.ndarray, thing: SceneObject) -> None:
    half = canvas.shape[-1] / 2
    reach = thing.radius + 1 / half
    (left, right), (top, bottom) = (
        [max(0, min(canvas.shape[-1], int((centre + d) * half + half))) for d in (-reach, reach + 1 / half)]
        for centre in (thing.x, thing.y)
    )
    axis = _axis(canvas.shape[-1])
    x, y = axis[left:right] - thing.x, (axis[top:bottom] - thing.y)[:, None]
    cosine, sine = _turn(thing.tilt)
    x, y = x * cosine + y * sine, y * cosine - x * sine
    distance = _distance(thing.shape, x * (1 / thing.radius), y * (1 / thing.radius))
    cover = _clip(0.5 - distance * (thing.radius * half), 0, 1)
    ink = np.array(thing.rgb, dtype=np.float32)[:, None, None]
    if thing.texture != "plain":
        # Black has no darker tone to be striped with: it takes a grey one.
        step = 0.36 - ink if thing.colour == "black" else ink * -0.3
        # A plain rim keeps the outline whole: dots cut by the edge would make a gear of a disc.
        rim = _clip((-RIM - distance) * (thing.radius * half), 0, 1)
        ink = ink + _texture(thing.texture, x, y, TEXTURE_PERIOD * half) * rim * step
    region = canvas[:, top:bottom, left:right]
    region += cover * (ink - region)


def _backdrop(ground: Background, image_size: int) -> np.ndarray:
    canvas = np.empty((3, image_size, image_size), dtype=np.float32)
    canvas[:] = np.array(ground.rgb, dtype=np.float32)[:, None, None]
    axis, (cosine, sine) = _axis(image_size), _turn(ground.tilt)
    slope = axis * cosine + (axis * sine)[:, None]
    if ground.kind == "shaded":
        canvas += slope * 0.12
    elif ground.kind == "striped":
        canvas += _clip(_wave(slope * 2.5) * 4, -1, 1) * 0.045
    elif ground.kind == "cloudy":
        # Bilinear between the cells, by hand: a matrix product would add in an order of its own.
        at = (axis + 1) * ((CELLS - 1) / 2)
        low = np.minimum(np.floor(at), CELLS - 2)
        rest, low = at - low, low.astype(np.intp)
        cells = np.array(ground.cells, dtype=np.float32).reshape(CELLS, CELLS)
        rows = cells[low] + (cells[low + 1] - cells[low]) * rest[:, None]
        canvas += (rows[:, low] + (rows[:, low + 1] - rows[:, low]) * rest) * 0.09
    return canvas


def render(scene: Scene, image_size: int = 64) -> np.ndarray:
    """(image_size, image_size, 3) uint8, RGB."""
    canvas = _backdrop(scene.background, image_size)
    for thing in scene.objects:
        _paint(canvas, thing)
    pixels = (_clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))  # c h w -> h w c
