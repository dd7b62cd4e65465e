"""What a source of pictures gives: candidates, to be read and checked several at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

# Of the formats that blip_describe takes.
SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


class SourceError(Exception):
    """The source as a whole cannot be read; its message is for the user."""


class Unreadable(Exception):
    """One picture cannot be read or taken; its message says why."""


@dataclass(frozen=True)
class Candidate:
    """Something that is perhaps a picture."""

    name: str
    """Its name in the source, or its row there."""
    read: Callable[[], bytes]
    """Its encoded bytes as they are; raises `Unreadable`. Called in any thread, once."""
    labels: dict = field(default_factory=dict)
    """What else the source says about it, as JSON's types."""
    size: int | None = None
    """In bytes, where that is known without reading."""
    etag: str | None = None
    """What changes with its contents, where that is known without reading."""


class Source:
    """Pictures of one place. Iterating gives `Candidate`s, always in the same order."""

    name: str
    """Where the pictures are from, e.g. `hf://owner/name/config/split`."""
    tagged = False
    """Whether its candidates have an etag, and so need not be read to know them again."""
    left_out = 0
    """Files so far that are no pictures by their names."""

    def total(self):
        """How many candidates there are, or None where counting them costs too much."""
        return None

    def __iter__(self):
        raise NotImplementedError


def suffix(name):
    """The end of a file's name from its last dot on, in lower case; empty where there is none."""
    return PurePosixPath(name).suffix.lower()
