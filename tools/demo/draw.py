"""Draws the demo's product pictures into a folder; pictures that are there already are kept.

    python draw.py --count 300 pictures
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import sys
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from progress import progress

GENERATOR = Path(__file__).resolve().parents[1] / "demo-captioner"
sys.path.insert(0, str(GENERATOR))

from demo_captioner.catalogue import Product  # noqa: E402
from demo_captioner.picture import picture_bytes  # noqa: E402

# From here on five of 300 pictures show red sneakers; on average it is one.
FIRST_SEED = 8_010_000
SIZES = [(480, 360), (640, 480), (400, 400), (360, 480), (512, 384)]

# What a product of each category costs, more or less, in some currency.
TYPICAL_PRICES = {
    "sneaker": 80, "boot": 120, "sandal": 40, "high heel": 90, "t-shirt": 20, "dress": 70,
    "skirt": 45, "trousers": 60, "hat": 30, "cap": 20, "handbag": 110, "backpack": 75,
    "mug": 12, "teapot": 35, "bottle": 18, "watch": 150, "sunglasses": 55, "chair": 130,
    "sofa": 700, "lamp": 65, "umbrella": 25,
}  # fmt: skip


def draw(folder, seed):
    """Draws one picture, whole or not at all."""
    target = folder / f"{seed}.jpg"
    if target.exists():
        return
    partial_file = target.with_suffix(".part")
    partial_file.write_bytes(picture_bytes(Product.sample(seed), SIZES[seed % len(SIZES)]))
    partial_file.replace(target)


def catalogue_entry(product):
    """What a shop knows of a product besides its picture. The price is invented, from the seed."""
    low, high = 0.6 * TYPICAL_PRICES[product.category], 1.4 * TYPICAL_PRICES[product.category]
    price = np.random.default_rng([product.seed, 3]).uniform(low, high)
    return {
        "category": product.category,
        "colour": product.colour,
        "price": f"{int(price)}.90",
    }


def fingerprint():
    """A hash of all code that decides what the pictures look like."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for file in sorted(GENERATOR.joinpath("demo_captioner").rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def prepare(folder):
    """An empty folder, unless its pictures are of this very generator."""
    stamp = folder / "generator"
    if not stamp.exists() or stamp.read_text() != fingerprint():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        stamp.write_text(fingerprint())


def main():
    parser = argparse.ArgumentParser(description="Draw product pictures.")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    prepare(args.folder)
    seeds = range(FIRST_SEED, FIRST_SEED + args.count)
    # Ctrl-C is for this process; the drawing ones then end with it.
    with Pool(os.cpu_count(), signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        drawn = pool.imap_unordered(partial(draw, args.folder), seeds, chunksize=4)
        for _ in progress(drawn, "Draw product pictures", args.count):
            pass
    products = {str(seed): Product.sample(seed) for seed in seeds}
    write(args.folder / "captions.json", {s: p.caption for s, p in products.items()})
    write(args.folder / "catalogue.json", {s: catalogue_entry(p) for s, p in products.items()})


def write(file, contents):
    file.write_text(json.dumps(contents, indent=1))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
