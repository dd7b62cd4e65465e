"""Outlines of things that one carries or wears."""

import math

import numpy as np

from ..outline import ellipse, rectangle, smooth


def handbag(shape, vary):
    """A bag with a flap, a clasp and one handle."""
    w = vary(-0.06, 0.08)
    a = vary(-0.06, 0.08)
    shape.stroke(smooth([(-0.36, -0.12), (-0.36, -0.62), (-0.20, -0.88 - a), (0.20, -0.88 - a),
        (0.36, -0.62), (0.36, -0.12)], False), "dark", 0.085)
    shape.fill(smooth([(-0.66, -0.18, 1), (0.66, -0.18, 1), (0.84 + w, 0.72), (0.74 + w, 0.84), (0, 0.86),
        (-0.74 - w, 0.84), (-0.84 - w, 0.72)]))
    shape.fill(smooth([(-0.67, -0.20, 1), (0.67, -0.20, 1), (0.62, 0.16), (0.30, 0.30), (0, 0.34),
        (-0.30, 0.30), (-0.62, 0.16)]), "dark")
    shape.fill(rectangle(-0.09, 0.22, 0.09, 0.44, 0.03), "metal")
    shape.fill(ellipse(-0.36, -0.10, 0.06, 0.06), "metal")
    shape.fill(ellipse(0.36, -0.10, 0.06, 0.06), "metal")


def backpack(shape, vary):
    """A rucksack with straps and a front pocket."""
    t = vary(-0.05, 0.05)
    shape.stroke(smooth([(-0.18, -0.80), (-0.16, -0.98), (0.16, -0.98), (0.18, -0.80)], False), "dark", 0.07)
    shape.stroke(smooth([(-0.56, -0.50), (-0.78, -0.15), (-0.76, 0.55), (-0.56, 0.80)], False), "dark", 0.12)
    shape.stroke(smooth([(0.56, -0.50), (0.78, -0.15), (0.76, 0.55), (0.56, 0.80)], False), "dark", 0.12)
    shape.fill(smooth([(-0.62, 0.90), (-0.64, 0.30), (-0.60, -0.40), (-0.46, -0.74), (-0.18, -0.86 + t),
        (0.18, -0.86 + t), (0.46, -0.74), (0.60, -0.40), (0.64, 0.30), (0.62, 0.90), (0.30, 0.95),
        (-0.30, 0.95)]))
    shape.stroke(smooth([(-0.54, -0.28), (-0.30, -0.46), (0, -0.50), (0.30, -0.46),
        (0.54, -0.28)], False), "line", 0.04)
    shape.fill(rectangle(-0.44, 0.18, 0.44, 0.78, 0.12), "dark")
    shape.stroke([(-0.36, 0.32), (0.36, 0.32)], "metal", 0.035)
    shape.fill(rectangle(-0.05, 0.30, 0.05, 0.46, 0.02), "metal")


def watch(shape, vary):
    """A wrist watch with any time on its dial."""
    r = vary(-0.03, 0.05)
    shape.fill(smooth([(-0.24, -0.40, 1), (-0.20, -0.98, 1), (0.20, -0.98, 1), (0.24, -0.40, 1)]))
    shape.fill(smooth([(-0.24, 0.40, 1), (-0.19, 0.90), (-0.12, 0.99), (0.12, 0.99), (0.19, 0.90),
        (0.24, 0.40, 1)]))
    shape.stroke([(-0.21, -0.84), (0.21, -0.84)], "metal", 0.07)
    for y in (0.62, 0.74, 0.86):
        shape.fill(ellipse(0, y, 0.03, 0.03), "shadow")
    shape.fill(rectangle(0.42, -0.07, 0.56, 0.07, 0.02), "metal")
    shape.fill(ellipse(0, 0, 0.47 + r, 0.47 + r), "main")
    shape.fill(ellipse(0, 0, 0.38 + r, 0.38 + r), "dial")
    for i in range(12):
        a = math.radians(30 * i)
        c, s = math.cos(a), math.sin(a)
        q = 0.31 + r
        shape.stroke([(c * (q - 0.04), s * (q - 0.04)), (c * q, s * q)], "hand", 0.028)
    a, b = vary(0, 6.28), vary(0, 6.28)
    shape.stroke([(0, 0), (0.17 * math.cos(a), 0.17 * math.sin(a))], "hand", 0.05)
    shape.stroke([(0, 0), (0.27 * math.cos(b), 0.27 * math.sin(b))], "hand", 0.035)


def sunglasses(shape, vary):
    """Sunglasses with round or drop-shaped lenses."""
    rnd = vary(0, 1) > 0.5
    k = vary(-0.03, 0.03)
    shape.stroke(smooth([(-0.92, -0.16), (-0.86, -0.34), (-0.62, -0.46)], False), "dark", 0.07)
    shape.stroke(smooth([(0.92, -0.16), (0.86, -0.34), (0.62, -0.46)], False), "dark", 0.07)
    for m in (-1, 1):
        if rnd:
            shape.fill(ellipse(m * 0.50, 0.06, 0.46, 0.40 + k))
            shape.fill(ellipse(m * 0.50, 0.07, 0.325, 0.275 + k), "lens")
        else:
            shape.fill(smooth([(m * 0.06, -0.26, 1), (m * 0.98, -0.30, 1), (m * 0.94, 0.18),
                (m * 0.72, 0.42 + k), (m * 0.34, 0.42 + k), (m * 0.12, 0.20)]))
            shape.fill(smooth([(m * 0.19, -0.13), (m * 0.84, -0.16), (m * 0.81, 0.14),
                (m * 0.66, 0.29 + k), (m * 0.38, 0.29 + k), (m * 0.23, 0.14)]), "lens")
        shape.stroke([(m * 0.50 - 0.14, 0.06), (m * 0.50 - 0.02, -0.08)], "shine", 0.045)
    shape.stroke(smooth([(-0.12, -0.10), (0, -0.17), (0.12, -0.10)], False), "main", 0.12)


def umbrella(shape, vary):
    """An open umbrella with a crook."""
    h = vary(-0.05, 0.05)
    shape.stroke([(0, -0.98), (0, 0.74)], "stick", 0.055)
    shape.stroke(smooth([(0, 0.70), (0, 0.86), (0.10, 0.96), (0.22, 0.92),
        (0.26, 0.78)], False), "stick", 0.075)
    xs = [-1, -0.62, -0.21, 0.21, 0.62, 1]
    top = smooth([(-1, 0.06, 1), (-0.88, -0.38), (-0.52, -0.72 - h), (0, -0.86 - h), (0.52, -0.72 - h),
        (0.88, -0.38), (1, 0.06, 1)], False)
    ribs = reversed(list(zip(xs[:-1], xs[1:])))
    hem = [ellipse((a + b) / 2, 0.06, (b - a) / 2, 0.13, 0, -180, 12) for a, b in ribs]
    shape.fill(np.concatenate([top, *hem]))
    for x in xs[1:-1]:
        shape.stroke(smooth([(0, -0.86 - h), (x * 0.75, -0.48 - h * 0.5),
            (x, 0.05)], False), "line", 0.03)
    shape.stroke([(0, -0.98), (0, -0.84)], "stick", 0.05)
