"""Pictures for training: small, many, in memory-mapped files of raw bytes.

    python -m demo_captioner.dataset work/train.u8 --first 0 --count 34000
    python -m demo_captioner.dataset work/mask.u8 --first 0 --count 34000 --silhouettes
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from .catalogue import Product
from .picture import render, silhouette

PICTURE_SIZE = 96
SILHOUETTE_SIZE = 24
# Drawn at a modest size and squashed to a square, as BLIP's processor does.
_SIZES = [(160, 120), (144, 144), (120, 160), (168, 112), (144, 108)]


def training_picture(seed):
    """The model-sized picture of a seed: uint8, shape (96, 96, 3)."""
    image = render(Product.sample(seed), _size(seed))
    return np.asarray(image.resize((PICTURE_SIZE, PICTURE_SIZE), Image.BICUBIC))


def training_silhouette(seed):
    """The silhouette of the same picture: uint8, shape (24, 24)."""
    image = silhouette(Product.sample(seed), _size(seed))
    return np.asarray(image.resize((SILHOUETTE_SIZE, SILHOUETTE_SIZE), Image.BOX))


def open_pictures(path):
    """A file of pictures as an array (n, 96, 96, 3)."""
    return _open(path, (PICTURE_SIZE, PICTURE_SIZE, 3))


def open_silhouettes(path):
    """A file of silhouettes as an array (n, 24, 24)."""
    return _open(path, (SILHOUETTE_SIZE, SILHOUETTE_SIZE))


def _open(path, shape):
    count = Path(path).stat().st_size // int(np.prod(shape))
    return np.memmap(path, np.uint8, "r", shape=(count, *shape))


def _size(seed):
    return _SIZES[np.random.default_rng([seed, 6]).integers(len(_SIZES))]


def main():
    parser = argparse.ArgumentParser(description="Draw training pictures into a file of raw bytes.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--first", type=int, required=True, help="first seed")
    parser.add_argument("--count", type=int, required=True, help="number of pictures in the file")
    parser.add_argument("--silhouettes", action="store_true", help="draw 24x24 silhouettes instead")
    parser.add_argument("--part", type=int, default=0, help="which of --parts this process draws")
    parser.add_argument("--parts", type=int, default=1, help="processes that fill the same file")
    args = parser.parse_args()
    draw = training_silhouette if args.silhouettes else training_picture
    shape = draw(args.first).shape
    args.file.parent.mkdir(parents=True, exist_ok=True)
    with open(args.file, "ab") as file:
        file.truncate(args.count * int(np.prod(shape)))
    pictures = np.memmap(args.file, np.uint8, "r+", shape=(args.count, *shape))
    for done, index in enumerate(range(args.part, args.count, args.parts)):
        pictures[index] = draw(args.first + index)
        if done % 2000 == 0:
            print(f"{done * args.parts} of {args.count}", flush=True)


if __name__ == "__main__":
    main()
