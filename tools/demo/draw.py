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

from progress import progress

GENERATOR = Path(__file__).resolve().parents[1] / "demo-captioner"
sys.path.insert(0, str(GENERATOR))

from demo_captioner.catalogue import Product  # noqa: E402
from demo_captioner.picture import picture_bytes  # noqa: E402

# From here on five of 300 pictures show red sneakers; on average it is one.
FIRST_SEED = 8_010_000
SIZES = [(480, 360), (640, 480), (400, 400), (360, 480), (512, 384)]


def draw(folder, seed):
    """Draws one picture, whole or not at all."""
    target = folder / f"{seed}.jpg"
    if target.exists():
        return
    partial_file = target.with_suffix(".part")
    partial_file.write_bytes(picture_bytes(Product.sample(seed), SIZES[seed % len(SIZES)]))
    partial_file.replace(target)


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
    truth = {str(seed): Product.sample(seed).caption for seed in seeds}
    (args.folder / "captions.json").write_text(json.dumps(truth, indent=1))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
