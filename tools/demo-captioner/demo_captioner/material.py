"""Colours of a thing's parts, and the pattern on its main part."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .palette import PRODUCT_COLOURS, random_colour


@dataclass(frozen=True)
class Material:
    """Colours by role, each three floats; `edge` draws the contour of filled parts."""

    base: np.ndarray
    roles: dict
    edge: tuple

    def colour(self, role):
        """The colour of a role as whole numbers from 0 to 255."""
        return _clipped(self.roles[role])


def random_material(product, rng):
    """Samples the material of a product."""
    base = random_colour(rng, PRODUCT_COLOURS[product.colour])
    luminance = base @ [0.3, 0.59, 0.11]
    # A nearly black thing gets paler details, any other darker ones.
    deep = luminance <= 40
    dark = luminance < 110
    roles = {
        "main": base,
        "dark": base + 22 if deep else base * 0.74,
        "light": base + (255 - base) * (0.10 if deep else 0.16),
        "shadow": base * 0.45,
        "line": base + 42 if deep else base * 0.62,
        "wood": np.array([120, 82, 50.0]),
        "shine": base + (255 - base) * 0.6,
        **_details(product.colour, dark, luminance, rng),
    }
    if product.category == "sunglasses":
        roles["shine"] = _neutral(rng, 120, 140)
    if product.background == "black":
        for role in ("stick", "sole", "cap"):
            if roles[role].mean() < 110:
                roles[role] = _neutral(rng, 150, 180)
    return Material(base, roles, _clipped(base + 30 if deep else base * 0.66))


def _details(colour, dark, luminance, rng):
    """Colours that do not follow from the product's own; in the order in which they are sampled."""
    white = colour == "white"
    pale_sole = colour in ("black", "brown")
    gold = np.array([212, 190, 120.0])
    coffee = np.array([92, 58, 36.0])
    return {
        "trim": _neutral(rng, 200, 215) if white else _neutral(rng, 238, 252),
        "trimline": _neutral(rng, 170, 200),
        "sole": np.array([176, 142, 102.0] if pale_sole else [70, 55, 45.0]),
        "metal": gold if rng.random() < 0.5 else _neutral(rng, 178, 205),
        "band": _neutral(rng, 225, 245) if dark else _neutral(rng, 30, 60),
        "drink": _neutral(rng, 225, 240) if colour == "brown" else coffee,
        "cap": _neutral(rng, 205, 225) if dark else _neutral(rng, 60, 90),
        "lens": _neutral(rng, 42, 62) if luminance > 60 else np.array([120, 128, 138.0]),
        "dial": _neutral(rng, 40, 60) if white else _neutral(rng, 238, 250),
        "hand": _neutral(rng, 230, 245) if white else _neutral(rng, 25, 45),
        "stick": _neutral(rng, 70, 95),
    }


def pattern_texture(product, base, placement, points, rng, width, height):
    """The pattern over the whole picture, or None for a plain product.

    Stripes, dots and checks lie in unit space, so they turn with the thing.
    """
    if product.pattern == "plain":
        return None
    inverse = np.linalg.inv(placement.matrix)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    dx, dy = x - placement.offset[0], y - placement.offset[1]
    u = inverse[0, 0] * dx + inverse[0, 1] * dy
    v = inverse[1, 0] * dx + inverse[1, 1] * dy
    extent = (points.max(0) - points.min(0)).max()
    period = rng.uniform(0.135, 0.185) * extent * 0.92
    second = _second_colour(product.colour, rng)
    duty = 0.34 if product.colour in ("white", "black") else 0.40

    def soft(distance):
        """Coverage from a signed distance in periods, with an edge of about one pixel."""
        return np.clip(distance * period * placement.unit / 1.0 + 0.5, 0, 1)

    if product.pattern == "striped":
        angle = [0, math.pi / 2, math.pi / 4][rng.choice(3, p=[0.45, 0.35, 0.2])]
        t = (u * math.sin(angle) + v * math.cos(angle)) / period
        coverage = soft(duty / 2 - np.abs(t - np.round(t)))
    elif product.pattern == "dotted":
        coverage = soft(0.215 - _distance_to_dots(u / period, v / period))
    else:
        bands = (soft(duty / 2 - np.abs(t - np.round(t))) for t in (u / period, v / period))
        coverage = np.clip(0.52 * sum(bands), 0, 1)
    texture = base + (second - base) * coverage[..., None]
    return Image.fromarray(np.clip(texture, 0, 255).astype(np.uint8))


def _distance_to_dots(u, v):
    """Distance to the nearest dot's centre; the dots sit on two interleaved square grids."""
    grids = [
        np.hypot(u - shift - np.round(u - shift), v - shift - np.round(v - shift))
        for shift in (0, 0.5)
    ]
    return np.minimum(*grids)


def _second_colour(colour, rng):
    if colour == "grey":
        return np.array([245, 245, 245.0] if rng.random() < 0.6 else [35, 35, 38.0])
    seconds = {"white": [60, 62, 70.0], "yellow": [120, 80, 30.0]}
    return np.array(seconds.get(colour, [245, 243, 238.0]))


def _neutral(rng, low, high):
    return np.full(3, rng.uniform(low, high)) * [1, 0.99, 0.97]


def _clipped(colour):
    return tuple(int(value) for value in np.clip(colour, 0, 255))
