"""Outlines of crockery, furniture and lamps."""

from ..outline import ellipse, rectangle, smooth


def mug(shape, vary):
    """A mug with a drink in it and a handle."""
    h = vary(-0.06, 0.08)
    shape.stroke(smooth([(0.48, -0.36), (0.80, -0.42), (0.96, -0.10), (0.86, 0.28),
        (0.48, 0.42)], False), "dark", 0.14)
    shape.fill(smooth([(-0.62, -0.62 - h, 1), (0.56, -0.62 - h, 1), (0.55, 0.50), (0.44, 0.74),
        (-0.03, 0.80), (-0.50, 0.74), (-0.61, 0.50)]))
    shape.fill(ellipse(-0.03, -0.62 - h, 0.595, 0.15), "light")
    shape.fill(ellipse(-0.03, -0.60 - h, 0.50, 0.105), "drink")


def teapot(shape, vary):
    """A round teapot with spout, handle and lid."""
    w = vary(-0.05, 0.05)
    shape.stroke(smooth([(-0.48, -0.24), (-0.86, -0.34), (-0.98, 0.08), (-0.74, 0.42),
        (-0.48, 0.44)], False), "dark", 0.11)
    shape.fill(smooth([(0.40, 0.42, 1), (0.66, 0.22), (0.78, -0.18), (1.02, -0.38, 1), (0.86, -0.44, 1),
        (0.66, -0.30), (0.50, -0.04), (0.36, 0.06, 1)]), "dark")
    shape.fill(smooth([(-0.30, -0.46), (0.0, -0.50), (0.30, -0.46), (0.58 + w, -0.10), (0.58 + w, 0.34),
        (0.36, 0.66), (0, 0.70), (-0.36, 0.66), (-0.58 - w, 0.34), (-0.58 - w, -0.10)]))
    shape.fill(smooth([(-0.36, -0.42, 1), (-0.26, -0.58), (0, -0.64), (0.26, -0.58), (0.36, -0.42, 1),
        (0, -0.36)]), "light")
    shape.fill(ellipse(0, -0.70, 0.09, 0.09), "dark")
    shape.fill(rectangle(-0.34, 0.62, 0.34, 0.74, 0.04), "dark")


def bottle(shape, vary):
    """A bottle with a cap, most with a label."""
    w = vary(-0.03, 0.05)
    shape.fill(smooth([(-0.13, -0.66, 1), (0.13, -0.66, 1), (0.14, -0.48), (0.30 + w, -0.26),
        (0.33 + w, 0.0), (0.33 + w, 0.84), (0.26, 0.96), (-0.26, 0.96), (-0.33 - w, 0.84), (-0.33 - w, 0.0),
        (-0.30 - w, -0.26), (-0.14, -0.48)]))
    shape.fill(rectangle(-0.18, -0.96, 0.18, -0.66, 0.05), "cap")
    shape.stroke([(-0.17, -0.76), (0.17, -0.76)], "trimline", 0.02)
    if vary(0, 1) > 0.4:
        shape.fill([(-0.33 - w, 0.18), (0.33 + w, 0.18), (0.33 + w, 0.56), (-0.33 - w, 0.56)], "trim")
        shape.stroke([(-0.18, 0.32), (0.18, 0.32)], "dark", 0.05)
        shape.stroke([(-0.12, 0.43), (0.12, 0.43)], "dark", 0.035)
    shape.stroke([(-0.20 - w, -0.10), (-0.20 - w, 0.12)], "shine", 0.05)


def chair(shape, vary):
    """A chair with two slats, seen at an angle."""
    h = vary(-0.06, 0.06)
    # back legs
    shape.stroke([(-0.40, 0.18), (-0.42, 0.97)], "dark", 0.085)
    shape.stroke([(0.60, 0.02), (0.62, 0.80)], "dark", 0.085)
    shape.fill([(-0.46, -0.97 + h), (-0.36, -0.97 + h), (-0.34, 0.20), (-0.46, 0.20)])
    shape.fill([(0.22, -0.97 + h), (0.32, -0.97 + h), (0.32, 0.10), (0.20, 0.10)])
    shape.fill([(-0.46, -0.97 + h), (0.32, -0.97 + h), (0.32, -0.76 + h), (-0.46, -0.76 + h)])
    for y in (-0.58, -0.34):
        shape.fill([(-0.40, y + h), (0.26, y + h), (0.26, y + 0.12 + h), (-0.40, y + 0.12 + h)])
    shape.fill([(-0.48, 0.14), (0.26, 0.04), (0.66, 0.12), (0.66, 0.24), (0.06, 0.36), (-0.48, 0.26)])
    shape.fill([(-0.48, 0.14), (0.26, 0.04), (0.66, 0.12), (0.04, 0.24)], "light")
    shape.stroke([(0.06, 0.30), (0.06, 1.0)], "main", 0.095)
    shape.stroke([(-0.42, 0.2), (-0.42, 0.90)], "main", 0.095)
    shape.stroke([(0.60, 0.18), (0.60, 0.82)], "main", 0.085)
    shape.stroke([(-0.42, 0.60), (0.06, 0.68)], "dark", 0.05)


def sofa(shape, vary):
    """A two-seat sofa with arm rests."""
    w = vary(-0.04, 0.04)
    for x in (-0.78, 0.78):
        shape.fill([(x - 0.06, 0.50), (x + 0.06, 0.50), (x + 0.04, 0.68), (x - 0.04, 0.68)], "wood")
    shape.fill(rectangle(-0.80, -0.52 + w, 0.80, 0.40, 0.14))
    shape.fill(rectangle(-0.74, -0.46 + w, -0.02, 0.06, 0.10))
    shape.fill(rectangle(0.02, -0.46 + w, 0.74, 0.06, 0.10))
    shape.stroke([(0, -0.46 + w), (0, 0.20)], "line", 0.035)
    shape.stroke([(-0.72, 0.02), (0.72, 0.02)], "line", 0.03)
    shape.fill(rectangle(-0.72, 0.04, -0.01, 0.30, 0.09), "light")
    shape.fill(rectangle(0.01, 0.04, 0.72, 0.30, 0.09), "light")
    shape.fill(rectangle(-0.84, 0.26, 0.84, 0.54, 0.06), "dark")
    shape.fill(rectangle(-1.0, -0.12, -0.68, 0.56, 0.14))
    shape.fill(rectangle(0.68, -0.12, 1.0, 0.56, 0.14))
    shape.stroke([(-0.68, 0.0), (-0.68, 0.54)], "line", 0.025)
    shape.stroke([(0.68, 0.0), (0.68, 0.54)], "line", 0.025)


def lamp(shape, vary):
    """A table lamp with a straight or a bellied foot."""
    w = vary(-0.06, 0.08)
    k = vary(0, 1)
    shape.stroke([(0, -0.10), (0, 0.84)], "metal", 0.08)
    if k > 0.5:
        shape.fill(smooth([(-0.08, 0.10), (0.08, 0.10), (0.24, 0.45), (0.16, 0.80), (-0.16, 0.80),
            (-0.24, 0.45)]), "dark")
    shape.fill(smooth([(-0.40, 0.97, 1), (-0.36, 0.86), (0, 0.82), (0.36, 0.86), (0.40, 0.97, 1)]), "dark")
    shape.fill(smooth([(-0.36, -0.95, 1), (0, -0.98), (0.36, -0.95, 1), (0.68 + w, -0.02, 1), (0.34, 0.05),
        (0, 0.07), (-0.34, 0.05), (-0.68 - w, -0.02, 1)]))
    shape.fill(ellipse(0, -0.95, 0.355, 0.05), "light")
    shape.stroke(smooth([(-0.68 - w, -0.03), (-0.34, 0.04), (0, 0.06), (0.34, 0.04),
        (0.68 + w, -0.03)], False), "dark", 0.04)
