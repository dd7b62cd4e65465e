"""Writes sample files at the sizes and in the formats that a shop has, with their captions.

    python -m demo_captioner.samples --model model --out .

A picture is kept only if the captioner is right about it; samples.json tells
how many were not.
"""

import argparse
import io
import json
from pathlib import Path

from PIL import Image

from .captioner import NUM_BEAMS, PROMPT, Captioner
from .catalogue import CATEGORIES, Product
from .picture import render

_FIRST_SEED = 7_000_001
_SIZES = [(480, 360), (640, 480), (400, 400), (320, 240), (360, 480), (512, 384)]
_MIN_BYTES, _MAX_BYTES = 15_000, 40_000
_QUALITIES = (88, 82, 76, 92, 70, 64, 95, 55, 45, 35)
_MOST_OF_A_COLOUR = 3


class Samples:
    """Draws seed after seed and writes those files whose captions are right."""

    def __init__(self, captioner, folder):
        self.captioner, self.folder = captioner, folder
        self.seed = _FIRST_SEED
        self.items, self.rejected = [], []
        (folder / "samples").mkdir(parents=True, exist_ok=True)

    def add_jpegs(self):
        """One JPEG a category, some progressive, some without colour subsampling."""
        for number, category in enumerate([*CATEGORIES, "sneaker", "t-shirt", "handbag"]):
            while not self._add_jpeg(number, category):
                pass

    def _add_jpeg(self, number, category):
        product = self._next_product(category=category)
        same = sum(item["colour"] == product.colour for item in self.items)
        if same >= _MOST_OF_A_COLOUR:
            return False
        options, kind = {"subsampling": 2}, ""
        if number % 8 == 3:
            options, kind = {"subsampling": 2, "progressive": True}, " progressive"
        elif number % 8 == 5:
            options, kind = {"subsampling": 0}, " 4:4:4"
        image = render(product, _SIZES[number % len(_SIZES)], jpeg=False)
        data, quality = _fitting_jpeg(image, options)
        name = f"{number + 1:02d}_{product.colour}_{category.replace(' ', '_')}.jpg"
        return data is not None and self._keep(name, data, product, f"jpeg q{quality}{kind}")

    def add_other_formats(self):
        """PNG with and without a palette, WebP, grey JPEG."""
        png = {"format": "PNG", "optimize": True}
        grey = {"colour": "black", "background": "white", "pattern": "plain"}
        dotted = {"background": "white", "pattern": "dotted"}
        self._add("25_mug.png", "png rgb", dotted, png)
        self._add(
            "26_umbrella.png", "png palette", {"background": "grey"}, png, lambda i: i.quantize(128)
        )
        self._add("27_backpack.webp", "webp lossy", {}, {"format": "WEBP", "quality": 85})
        self._add(
            "28_boot_gray.jpg",
            "jpeg grayscale",
            grey,
            {"format": "JPEG", "quality": 90},
            lambda i: i.convert("L"),
        )

    def _add(self, name, note, attributes, options, convert=lambda image: image):
        category = name.split("_")[1].split(".")[0]
        while True:
            product = self._next_product(category=category, **attributes)
            image = convert(render(product, (320, 240), jpeg=False))
            if self._keep(name, _encoded(image, **options), product, note):
                return

    def _next_product(self, **attributes):
        product = Product.sample(self.seed, **attributes)
        self.seed += 1
        return product

    def _keep(self, name, data, product, note):
        """Writes the file if greedy, beam and prompted search all say the true caption."""
        image = Image.open(io.BytesIO(data))
        greedy = self.captioner.generate([image])[0]
        beam = self.captioner.generate([image], num_beams=NUM_BEAMS)[0]
        prompted = self.captioner.generate([image], PROMPT)[0]
        text, expected = self.captioner.text(greedy), self.captioner.decoded(product.caption)
        prompted_text = self.captioner.text(prompted)
        if text != expected or beam != greedy or prompted_text != f"{PROMPT} {text}":
            self.rejected.append((product.seed, product.caption, text))
            return False
        (self.folder / "samples" / name).write_bytes(data)
        item = {
            "file": f"samples/{name}",
            "seed": product.seed,
            "size": list(image.size),
            "mode": image.mode,
            "bytes": len(data),
            "format": note,
            "caption": product.caption,
            "expected_text": expected,
            "greedy_text": text,
            "greedy_ids": greedy,
            "beam3_text": self.captioner.text(beam),
            "beam3_ids": beam,
            "prompt_text": prompted_text,
            "prompt_ids": prompted,
            "category": product.category,
            "colour": product.colour,
            "pattern": product.pattern,
            "background": product.background,
        }
        self.items.append(item)
        return True

    def write_index(self):
        """Writes samples.json."""
        document = {
            "prompt": PROMPT,
            "note": "seeds tried in order; kept only where greedy = beam3 = the true caption, "
            "see rejected",
            "rejected": self.rejected,
            "items": self.items,
        }
        (self.folder / "samples.json").write_text(json.dumps(document, indent=1))


def _fitting_jpeg(image, options):
    """A JPEG of 15 to 40 kB and its quality, or None where no quality gives that."""
    for quality in _QUALITIES:
        data = _encoded(image, format="JPEG", quality=quality, **options)
        if _MIN_BYTES <= len(data) <= _MAX_BYTES:
            return data, quality
    return None, None


def _encoded(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def main():
    parser = argparse.ArgumentParser(description="Write sample pictures and their captions.")
    parser.add_argument("--model", type=Path, default=Path("model"))
    parser.add_argument("--out", type=Path, default=Path("."))
    args = parser.parse_args()
    samples = Samples(Captioner(args.model), args.out)
    samples.add_jpegs()
    samples.add_other_formats()
    samples.write_index()
    print(f"{len(samples.items)} samples, {len(samples.rejected)} rejected")


if __name__ == "__main__":
    main()
