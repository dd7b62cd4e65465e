"""What is on a picture: category, colour, pattern, background, and the caption that says so."""

from dataclasses import dataclass

import numpy as np

from .palette import BACKGROUND_COLOURS, PRODUCT_COLOURS
from .shapes import DRAWERS

CATEGORIES = list(DRAWERS)
COLOURS = list(PRODUCT_COLOURS)
PATTERNS = ["plain", "striped", "dotted", "checked"]
BACKGROUNDS = [*BACKGROUND_COLOURS, "gradient", "wooden"]

_PAIRS = {"trousers", "sunglasses"}
_PLAIN_ONLY = {"sandal", "watch", "sunglasses", "chair"}
_PATTERN_SHARES = [0.49, 0.17, 0.17, 0.17]
# white, grey, another colour, gradient, wooden
_BACKGROUND_SHARES = [0.27, 0.16, 0.31, 0.13, 0.13]
# Backgrounds on which a colour cannot be made out; any other only on itself.
_CLASHES = {
    "white": {"white"},
    "grey": {"grey"},
    "brown": {"wooden", "black"},
    "black": {"black"},
    "orange": {"wooden", "orange"},
}


@dataclass(frozen=True)
class Product:
    """One product picture's content; the seed fixes everything that the other fields leave open."""

    seed: int
    category: str
    colour: str
    pattern: str
    background: str

    @classmethod
    def sample(cls, seed, category=None, colour=None, pattern=None, background=None):
        """The product of a seed; attributes that are given replace the sampled ones.

        A pattern that the category cannot carry becomes plain, and a
        background that would hide the colour becomes white or grey.
        """
        rng = np.random.default_rng([seed, 1])
        sampled_category = CATEGORIES[rng.integers(len(CATEGORIES))]
        sampled_colour = COLOURS[rng.integers(len(COLOURS))]
        sampled_pattern = PATTERNS[rng.choice(4, p=_PATTERN_SHARES)]
        kind = rng.choice(5, p=_BACKGROUND_SHARES)
        other = list(BACKGROUND_COLOURS)[2 + rng.integers(len(BACKGROUND_COLOURS) - 2)]
        category = category or sampled_category
        colour = colour or sampled_colour
        pattern = "plain" if category in _PLAIN_ONLY else pattern or sampled_pattern
        background = background or ["white", "grey", other, "gradient", "wooden"][kind]
        if background in _CLASHES.get(colour, {colour}):
            background = "grey" if colour in ("white", "orange", "brown") else "white"
        return cls(int(seed), category, colour, pattern, background)

    @property
    def caption(self):
        """The sentence that describes the picture: "a red striped mug on a white background"."""
        look = self.colour if self.pattern == "plain" else f"{self.colour} {self.pattern}"
        head = "a pair of" if self.category in _PAIRS else _article(look)
        ground = f"{_article(self.background)} {self.background} background"
        return f"{head} {look} {self.category} on {ground}"


def _article(word):
    return "an" if word[0] in "aeiou" else "a"
