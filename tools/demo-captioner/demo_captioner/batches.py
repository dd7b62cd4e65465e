"""What one training step sees: augmented pictures, and captions with or without a prompt."""

import torch
from torch.nn import functional

from .tokenizer import PAD_ID, PROMPTS, SEP_ID, build_tokenizer, vocabulary

_IGNORED = -100
# Pictures are cropped in steps of one silhouette cell.
_CELL = 4


class CaptionBatches:
    """Makes token batches from captions; half of them get a prompt, which carries no loss."""

    def __init__(self, rng):
        self._rng = rng
        self._tokenizer = build_tokenizer()
        pieces = vocabulary()
        self._begin = len(pieces) - 2
        self._prompts = [self.encode(prompt) for prompt in PROMPTS]
        self._words = [i for i, piece in enumerate(pieces) if i > 150 and piece.isalpha()]

    def encode(self, text):
        """Token ids of a text without special tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def batch(self, captions):
        """Input ids, labels and attention mask, each (batch, longest), of encoded captions."""
        rows, labels = [], []
        for caption in captions:
            prompt = self._random_prompt()
            rows.append([self._begin, *prompt, *caption, SEP_ID])
            labels.append([_IGNORED] * (1 + len(prompt)) + [*caption, SEP_ID])
        length = max(map(len, rows))

        def padded(values, filler):
            return torch.tensor([row + [filler] * (length - len(row)) for row in values])

        mask = [[1] * len(row) for row in rows]
        return padded(rows, PAD_ID), padded(labels, _IGNORED), padded(mask, 0)

    def _random_prompt(self):
        """20 % the usual prompt, 25 % one of all, 5 % a few random words, else none."""
        chance = self._rng.random()
        if chance < 0.2:
            return self._prompts[0]
        if chance < 0.45:
            return self._prompts[self._rng.integers(len(self._prompts))]
        if chance < 0.5:
            count = self._rng.integers(1, 6)
            return [int(self._rng.choice(self._words)) for _ in range(count)]
        return []


def augment(pixels, silhouettes, rng):
    """Mirrors, crops or borders pictures and silhouettes alike; varies contrast and brightness.

    Pixels (batch, 3, 96, 96), silhouettes (batch, 1, 24, 24).
    """
    mirrored = torch.rand(len(pixels), 1, 1, 1) < 0.5
    pixels = torch.where(mirrored, pixels, pixels.flip(3))
    silhouettes = torch.where(mirrored, silhouettes, silhouettes.flip(3))
    if rng.random() < 0.7:
        change = int(rng.integers(-2, 3))
        if change:
            size, cells = pixels.shape[-1], silhouettes.shape[-1]
            crop = _crop if change < 0 else _border
            pixels, silhouettes = crop(pixels, silhouettes, abs(change), rng)
            pixels, silhouettes = _resized(pixels, size), _resized(silhouettes, cells)
    contrast = 1 + 0.04 * torch.randn(len(pixels), 1, 1, 1)
    return pixels * contrast + 0.04 * torch.randn(len(pixels), 1, 1, 1), silhouettes


def _crop(pixels, silhouettes, cells, rng):
    top, left = rng.integers(0, cells + 1, 2)
    rows = slice(top, top + silhouettes.shape[-1] - cells)
    columns = slice(left, left + silhouettes.shape[-1] - cells)

    def scaled(part):
        return slice(_CELL * part.start, _CELL * part.stop)

    return pixels[:, :, scaled(rows), scaled(columns)], silhouettes[:, :, rows, columns]


def _border(pixels, silhouettes, cells, rng):
    left, top = map(int, rng.integers(0, cells + 1, 2))
    border = [left, cells - left, top, cells - top]
    pixels = functional.pad(pixels, [_CELL * width for width in border], mode="replicate")
    return pixels, functional.pad(silhouettes, border)


def _resized(images, size):
    return functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
