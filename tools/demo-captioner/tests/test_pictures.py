"""The generator draws what it always drew: trained weights and stored captions depend on it."""

import hashlib
import unittest
from pathlib import Path

import numpy as np
from PIL import Image

from demo_captioner.catalogue import BACKGROUNDS, CATEGORIES, COLOURS, PATTERNS, Product
from demo_captioner.dataset import training_picture, training_silhouette
from demo_captioner.picture import render

GOLDENS = Path(__file__).resolve().parents[3] / "demo" / "goldens"


def digest(data):
    return hashlib.sha256(data).hexdigest()[:16]


class Captions(unittest.TestCase):
    def test_captions_of_seeds_are_stable(self):
        captions = "\n".join(Product.sample(seed).caption for seed in range(500))
        self.assertEqual(digest(captions.encode()), "983798288ca44c52")

    def test_articles_and_pairs(self):
        def caption(**attributes):
            return Product.sample(0, **attributes).caption

        self.assertEqual(
            caption(category="mug", colour="orange", pattern="plain", background="white"),
            "an orange mug on a white background",
        )
        self.assertEqual(
            caption(category="trousers", colour="red", pattern="dotted", background="orange"),
            "a pair of red dotted trousers on an orange background",
        )

    def test_background_never_hides_the_product(self):
        for seed in range(500):
            product = Product.sample(seed)
            self.assertNotEqual(product.colour, product.background)

    def test_some_categories_are_always_plain(self):
        product = Product.sample(1, category="watch", pattern="striped")
        self.assertEqual(product.pattern, "plain")

    def test_every_word_occurs(self):
        products = [Product.sample(seed) for seed in range(2000)]
        for attribute, names in [
            ("category", CATEGORIES),
            ("colour", COLOURS),
            ("pattern", PATTERNS),
            ("background", BACKGROUNDS),
        ]:
            seen = {getattr(product, attribute) for product in products}
            self.assertEqual(seen, set(names))


class Pictures(unittest.TestCase):
    def test_same_seed_same_picture(self):
        product = Product.sample(7)
        first, second = (render(product, (160, 120)).tobytes() for _ in range(2))
        self.assertEqual(first, second)
        self.assertNotEqual(first, render(Product.sample(8), (160, 120)).tobytes())

    def test_silhouettes_are_stable(self):
        """Outlines and placement of all categories, to the bit: no float kernels are in them."""
        silhouettes = b"".join(training_silhouette(seed).tobytes() for seed in range(100))
        self.assertEqual(digest(silhouettes), "6ee949a2bb609f66")

    def test_pictures_equal_the_committed_ones(self):
        """Within a level or two: sines of other processors may differ in the last bit."""
        files = sorted(GOLDENS.rglob("*.png"))
        self.assertGreaterEqual(len(files), 32)
        for file in files:
            committed = np.asarray(Image.open(file).convert("RGB")).astype(int)
            difference = np.abs(committed - training_picture(int(file.stem)))
            self.assertLess(difference.mean(), 0.01, file.name)

    def test_any_size(self):
        for size in [(40, 30), (97, 211)]:
            image = render(Product.sample(3), size)
            self.assertEqual((image.size, image.mode), (size, "RGB"))


if __name__ == "__main__":
    unittest.main()
