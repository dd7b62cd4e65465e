"""Pictures of a folder and of the folders in it."""

import os
from functools import partial
from pathlib import Path

from .source import SUFFIXES, Candidate, Source, SourceError, Unreadable, suffix


class FolderSource(Source):
    """Files with a picture's suffix, but hidden ones; the name of a subfolder is the label."""

    def __init__(self, folder):
        self.folder = Path(folder).resolve()
        self.name = readable(str(self.folder))
        if not self.folder.is_dir():
            raise SourceError(f"{folder} is not a folder")

    def total(self):
        """Counts the files, without looking into them."""
        return sum(1 for _ in self.pictures())

    def pictures(self):
        """Paths of the pictures below the folder, sorted in each folder."""
        self.left_out = 0
        for parent, folders, files in os.walk(self.folder, onerror=fail):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                if name.startswith("."):
                    continue
                if suffix(name) in SUFFIXES:
                    yield Path(parent, name)
                else:
                    self.left_out += 1

    def __iter__(self):
        for path in self.pictures():
            inside = path.relative_to(self.folder)
            label = inside.parent.name
            yield Candidate(
                name=readable(inside.as_posix()),
                read=partial(read_file, path),
                labels={"label": readable(label)} if label else {},
                size=size_of(path),
            )


def read_file(path):
    """The bytes of a file; raises `Unreadable`."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error


def size_of(path):
    """In bytes; None where the file has gone, or is a link to nowhere: reading it will say so."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def readable(name):
    """A file's name as text: bytes in it that are no UTF-8 become replacement characters."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def fail(error):
    """A folder that cannot be listed would be a silent loss of pictures."""
    raise SourceError(f"{error.filename}: {error.strerror}") from error
