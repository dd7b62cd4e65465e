"""Outlines: polygons and strokes in a unit space, and the curves that they are made of."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Part:
    """A filled polygon (width None) or a stroke of a width, in unit space.

    `points` has shape (n, 2). `role` names the colour: "main" is the product's
    own colour and carries its pattern.
    """

    points: np.ndarray
    role: str
    width: float | None = None


class Outline:
    """The parts of one thing, from back to front."""

    def __init__(self):
        self.parts = []

    def fill(self, points, role="main"):
        """Adds a filled polygon."""
        self.parts.append(Part(np.asarray(points, float), role))

    def stroke(self, points, role="line", width=0.03):
        """Adds a line along the points."""
        self.parts.append(Part(np.asarray(points, float), role, width))

    def points(self):
        """All points of all parts, shape (n, 2)."""
        return np.concatenate([part.points for part in self.parts])


def smooth(points, closed=True, steps=8):
    """A Catmull-Rom curve through the points; a point given as (x, y, 1) is a sharp corner."""
    knots = []
    for point in points:
        knots += [point[:2]] * (3 if len(point) > 2 else 1)
    knots = np.array(knots, float)
    count = len(knots)
    out = []
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    for i in range(count if closed else count - 1):
        around = (i + k for k in (-1, 0, 1, 2))
        a, b, c, d = (knots[j % count if closed else min(max(j, 0), count - 1)] for j in around)
        if b[0] == c[0] and b[1] == c[1]:
            continue  # between the copies of a sharp corner there is nothing to draw
        quadratic, cubic = 2 * a - 5 * b + 4 * c - d, 3 * b - a - 3 * c + d
        out.append(0.5 * (2 * b + (c - a) * t + quadratic * t**2 + cubic * t**3))
    if not closed:
        out.append(knots[-1:])
    return np.concatenate(out)


def ellipse(cx, cy, rx, ry, start=0, end=360, count=36):
    """Points of an arc of an ellipse; angles in degrees, clockwise as y points down."""
    angle = np.radians(np.linspace(start, end, count))
    return np.stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)], 1)


def rectangle(x0, y0, x1, y1, radius=0.0):
    """A rectangle; with a radius its corners are rounded."""
    if radius <= 0:
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)
    r = min(radius, (x1 - x0) / 2, (y1 - y0) / 2)
    return np.concatenate(
        [
            ellipse(x1 - r, y0 + r, r, r, -90, 0, 7),
            ellipse(x1 - r, y1 - r, r, r, 0, 90, 7),
            ellipse(x0 + r, y1 - r, r, r, 90, 180, 7),
            ellipse(x0 + r, y0 + r, r, r, 180, 270, 7),
        ]
    )
