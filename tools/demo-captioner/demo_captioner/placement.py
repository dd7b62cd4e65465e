"""Where on the picture the thing stands: an affine map from unit space to pixels."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Placement:
    """`pixel = matrix @ point + offset`; `unit` is the length of 1 in pixels."""

    matrix: np.ndarray
    offset: np.ndarray
    unit: float

    def pixels(self, points):
        """Points of unit space, shape (n, 2), as a list of pixel coordinates."""
        return [tuple(point) for point in points @ self.matrix.T + self.offset]

    def reduced(self, factor):
        """The same placement on a picture smaller by a factor, as far as lighting needs it."""
        return Placement(self.matrix, self.offset / factor, self.unit / factor)


def random_placement(rng, points, width, height, difficulty):
    """Turns, shears, perhaps mirrors, and scales the points to 62 to 92 % of the picture."""
    angle = max(min(math.radians(rng.normal(0, 7) * difficulty), 0.35), -0.35)
    shear = rng.uniform(-0.10, 0.10) * difficulty
    aspect = rng.uniform(0.93, 1.07)
    flip = -1 if rng.random() < 0.5 else 1
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) @ np.diag([flip * aspect, 1 / aspect])
    turned = points @ matrix.T
    low = turned.min(0)
    extent = turned.max(0) - low
    share = rng.uniform(0.62, 0.92)
    scale = share * min(width / extent[0], height / extent[1])
    scale = min(scale, 1.25 * min(width, height) / extent.max() * share)
    free = np.array([width, height]) - extent * scale
    corner = free * (np.clip(rng.normal(0.5, 0.22, 2), 0.06, 0.94))
    offset = corner - low * scale
    matrix = matrix * scale
    return Placement(matrix, offset, math.sqrt(abs(np.linalg.det(matrix))))
