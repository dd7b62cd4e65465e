"""Backgrounds of pictures: one colour, a gradient, or wooden boards."""

import colorsys
import math

import numpy as np

from .palette import BACKGROUND_COLOURS, random_colour

_GRADIENT_COLOURS = ["pink", "yellow", "green", "blue", "purple", "turquoise", "orange", "white", "grey"]


def background(product, rng, width, height):
    """The background of a product's picture, floats from 0 to 255, shape (height, width, 3)."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    u, v = x / width - 0.5, y / height - 0.5
    if product.background == "gradient":
        return _gradient(product.colour, rng, u, v)
    if product.background == "wooden":
        return _boards(rng, u, v)
    return _plain(random_colour(rng, BACKGROUND_COLOURS[product.background]), rng, u, v)


def _plain(colour, rng, u, v):
    slope = rng.uniform(-0.05, 0.05, 2)
    vignette = rng.uniform(0, 0.06)
    light = 1 + slope[0] * u + slope[1] * v - vignette * (u * u + v * v) * 2
    return colour * light[..., None]


def _gradient(own, rng, u, v):
    for _ in range(50):
        first, second = rng.choice(_GRADIENT_COLOURS, 2, replace=False)
        start = random_colour(rng, BACKGROUND_COLOURS[first])
        end = random_colour(rng, BACKGROUND_COLOURS[second])
        distinct = np.abs(start - end).sum() > 150 and {first, second} != {"white", "grey"}
        if distinct and own not in (first, second):
            break
    angle = rng.uniform(0, 2 * math.pi)
    t = u * math.cos(angle) + v * math.sin(angle)
    steepness = rng.uniform(1.1, 1.5)
    t = t / (abs(math.cos(angle)) + abs(math.sin(angle))) * steepness + 0.5
    t = np.clip(t, 0, 1)[..., None]
    return start * (1 - t) + end * t


def _boards(rng, u, v):
    hsv = rng.uniform(24, 34) / 360, rng.uniform(0.36, 0.52), rng.uniform(0.66, 0.84)
    colour = np.array(colorsys.hsv_to_rgb(*hsv)) * 255
    upright = rng.random() < 0.4
    across, along = (u, v) if upright else (v, u)
    count = int(rng.integers(3, 6))
    place = (across + 0.5) * count + rng.uniform(0, 1)
    board = np.floor(place).astype(int) % 16
    tone = rng.uniform(0.86, 1.08, 16)[board]
    phase = rng.uniform(0, 6.28, 16)[board]
    rings = across * count * rng.uniform(10, 16)
    coarse = np.sin((rings + 0.9 * np.sin(along * rng.uniform(5, 9) + phase) + phase) * 2)
    fine = np.sin(rings * 3.7 + 2 * np.sin(along * 4 + phase))
    grain = coarse * 0.045 + fine * 0.025
    gap = np.clip(1 - np.abs(place - np.round(place)) * 26, 0, 1) * 0.45
    return colour * (tone * (1 + grain) * (1 - gap))[..., None]
