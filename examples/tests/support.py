"""What the tests share: drawn pictures, and the examples as a user runs them."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
EXAMPLES = REPO / "examples"
sys.path[:0] = [str(EXAMPLES), str(REPO / "tools" / "demo-captioner")]

from demo_captioner.catalogue import Product  # noqa: E402
from demo_captioner.picture import picture_bytes  # noqa: E402

FIRST_SEED = 8_100_000


@cache
def drawn(number):
    """Bytes of a drawn product as JPEG; each number is another picture."""
    return picture_bytes(Product.sample(FIRST_SEED + number), (160, 120))


@cache
def caption(number):
    """What that picture shows."""
    return Product.sample(FIRST_SEED + number).caption


def command(program, *arguments):
    """The command line of one of the examples."""
    return [sys.executable, "-B", str(EXAMPLES / program), *map(str, arguments)]


def run(program, *arguments, **environment):
    """Runs one of the examples; returns exit status, standard output and standard error."""
    done = subprocess.run(
        command(program, *arguments),
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    return done.returncode, done.stdout, done.stderr
