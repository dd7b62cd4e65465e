"""Named colours as ranges of hue, saturation and value.

A range is ((hue low, high) in degrees, (saturation low, high), (value low,
high)). The ranges keep names apart: no red is nearly an orange.
"""

import colorsys

import numpy as np

PRODUCT_COLOURS = {
    "red": ((352, 364), (0.78, 0.95), (0.70, 0.88)),
    "orange": ((23, 31), (0.85, 1.0), (0.93, 1.0)),
    "yellow": ((48, 55), (0.75, 0.95), (0.94, 1.0)),
    "green": ((112, 142), (0.55, 0.85), (0.42, 0.66)),
    "turquoise": ((172, 182), (0.60, 0.85), (0.68, 0.85)),
    "blue": ((214, 228), (0.68, 0.90), (0.58, 0.86)),
    "purple": ((268, 284), (0.52, 0.75), (0.45, 0.68)),
    "pink": ((326, 344), (0.32, 0.52), (0.95, 1.0)),
    "brown": ((18, 27), (0.55, 0.75), (0.32, 0.46)),
    "black": ((0, 360), (0, 0.10), (0.07, 0.15)),
    "white": ((0, 360), (0, 0.03), (0.95, 1.0)),
    "grey": ((0, 360), (0, 0.05), (0.48, 0.62)),
}
BACKGROUND_COLOURS = {
    "white": ((0, 360), (0, 0.02), (0.96, 1.0)),
    "grey": ((0, 360), (0, 0.05), (0.58, 0.74)),
    "black": ((0, 360), (0, 0.1), (0.06, 0.12)),
    "red": ((353, 363), (0.65, 0.85), (0.66, 0.82)),
    "orange": ((24, 32), (0.62, 0.85), (0.95, 1.0)),
    "yellow": ((48, 56), (0.45, 0.75), (0.95, 1.0)),
    "green": ((100, 140), (0.32, 0.60), (0.62, 0.82)),
    "blue": ((206, 226), (0.38, 0.70), (0.72, 0.92)),
    "purple": ((266, 284), (0.32, 0.52), (0.66, 0.82)),
    "pink": ((330, 346), (0.18, 0.34), (0.97, 1.0)),
    "turquoise": ((172, 182), (0.38, 0.62), (0.74, 0.88)),
}


def random_colour(rng, ranges):
    """A colour from the ranges, as three floats from 0 to 255 (red, green, blue)."""
    (h0, h1), (s0, s1), (v0, v1) = ranges
    hue = (rng.uniform(h0, h1) % 360) / 360
    return np.array(colorsys.hsv_to_rgb(hue, rng.uniform(s0, s1), rng.uniform(v0, v1))) * 255
