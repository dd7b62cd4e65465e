"""The demo's progress bars."""

import sys

from tqdm import tqdm

BAR = "  {desc:<26}{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt}, {rate_fmt}"


def progress(pictures, description, total):
    """A bar over an iterable of pictures, or over nothing (None) for manual updates.

    Where nobody watches, a line every few seconds is enough: logs keep them all.
    """
    seconds = 0.1 if sys.stderr.isatty() else 5
    return tqdm(
        pictures, description, total, unit="pic", bar_format=BAR, mininterval=seconds, miniters=1
    )
