"""Pictures of data sets that the library `datasets` reads: of a Hugging Face hub, or local ones."""

import math
import os
import sys
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import datasets
import fsspec
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

from .folder import read_file
from .source import Candidate, Source, SourceError, Unreadable

# Where the hub keeps its own conversion of a data set to parquet.
CONVERTED = "refs/convert/parquet"
# Before a split's name there, when the data set is so large that only its first part is converted.
PARTIAL = "partial-"


class Preset(NamedTuple):
    """A part of a data set of the hub."""

    path: str
    config: str | None
    split: str


PRESETS = {
    "fashionpedia": Preset("detection-datasets/fashionpedia", None, "val"),
    "nfl": Preset("keremberke/nfl-object-detection", "mini", "test"),
    "planes": Preset("keremberke/plane-detection", "mini", "train"),
    "snacks": Preset("Matthijs/snacks", None, "validation"),
    "pets": Preset("rokmr/mini_pets", None, "test"),
    "pokemon": Preset("keremberke/pokemon-classification", "mini", "train"),
}


class DatasetSource(Source):
    """One split of a data set. Other columns become labels, classes by their names."""

    def __init__(self, name, rows, column=None):
        """`rows` is a `datasets.Dataset`; `column` holds the pictures, where several might."""
        self.name = name
        self.column = column or picture_column(rows.features)
        if self.column not in rows.features:
            raise SourceError(
                f"{name} has no column {self.column}, only {', '.join(rows.features)}"
            )
        if isinstance(rows.features[self.column], datasets.Image):
            # The bytes as they are, not pixels.
            rows = rows.cast_column(self.column, datasets.Image(decode=False))
        self.rows = rows
        self.label_features = {
            label: feature
            for label, feature in rows.features.items()
            if label != self.column and not is_media(feature)
        }

    def total(self):
        return len(self.rows)

    def __iter__(self):
        for number, row in enumerate(self.rows):
            stored = row[self.column]
            path = stored.get("path") if isinstance(stored, dict) else None
            yield Candidate(
                name=PurePosixPath(path).name if path else str(number),
                read=partial(read_stored, stored),
                labels={
                    label: plain(row[label], feature)
                    for label, feature in self.label_features.items()
                },
            )


def open_dataset(path, config=None, split=None, revision=None, column=None):
    """The sources of a data set, one a split; of one split where it is named.

    `path` is `owner/name` on the hub, or a local folder that `datasets` can read. A data set that
    needs a script of its own, which is no longer run, is read from the hub's conversion to parquet.
    """
    local = os.path.isdir(path)
    try:
        if not local and revision is None and has_script(path):
            config, splits = open_converted(path, config, split)
        else:
            opened = datasets.load_dataset(path, config, split=split, revision=revision)
            splits = {split: opened} if split else opened
    except SourceError:
        raise
    # The libraries below raise errors of many classes, from ValueError to those of HTTP.
    except Exception as error:
        raise SourceError(f"cannot open the data set {path}: {error}") from error
    base = Path(path).resolve().as_posix() if local else f"hf://{path}"
    return [
        DatasetSource(f"{base}/{config or 'default'}/{name}", rows, column)
        for name, rows in splits.items()
    ]


def has_script(path):
    """Whether a data set of the hub is one that a script of its own would have to read."""
    script = path.rsplit("/", 1)[-1] + ".py"
    return HfApi().file_exists(path, script, repo_type="dataset")


def open_converted(path, config, split):
    """Configuration and splits by name, from the hub's conversion to parquet."""
    files = converted_files(path)
    if config is None:
        config = "default" if "default" in files or len(files) != 1 else next(iter(files))
    splits = files.get(config)
    if splits is None:
        raise SourceError(f"{path} has no configuration {config}, only {', '.join(sorted(files))}")
    if split is not None and split not in splits:
        raise SourceError(
            f"{path}, {config} has no split {split}, only {', '.join(sorted(splits))}"
        )
    chosen = {split: splits[split]} if split else splits
    for name, parts in chosen.items():
        if any(f"/{PARTIAL}" in part for part in parts):
            print(
                f"note: of {path}, {config}, {name} the hub has converted the first part only",
                file=sys.stderr,
            )
    return config, datasets.load_dataset(path, data_files=chosen, revision=CONVERTED)


def converted_files(path):
    """Parquet files of the hub's conversion: lists by configuration and split."""
    try:
        listed = HfApi().list_repo_files(path, revision=CONVERTED, repo_type="dataset")
    except (RevisionNotFoundError, EntryNotFoundError):
        listed = []
    found = {}
    for file in sorted(listed):
        parts = file.split("/")
        if len(parts) == 3 and file.endswith(".parquet"):
            config, split, _ = parts
            split = split.removeprefix(PARTIAL)
            found.setdefault(config, {}).setdefault(split, []).append(file)
    if not found:
        raise SourceError(
            f"{path} needs a script, which is no longer run, and the hub has not converted it to"
            " parquet"
        )
    return found


def picture_column(features):
    """The only column of pictures."""
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(found) == 1:
        return found[0]
    if found:
        raise SourceError(
            f"several columns hold pictures: choose one of {', '.join(found)} by --column"
        )
    raise SourceError(
        f"no column is declared to hold pictures; --column chooses one of {', '.join(features)}"
    )


def read_stored(stored):
    """The encoded bytes of a picture as a data set stores it: bytes, a file's path, or both."""
    if isinstance(stored, bytes):
        return stored
    if stored is None:
        raise Unreadable("the row has no picture")
    if not isinstance(stored, dict):
        raise Unreadable(f"the column holds no pictures but {type(stored).__name__}")
    if stored.get("bytes") is not None:
        return stored["bytes"]
    path = stored.get("path")
    if not path:
        raise Unreadable("the row has no picture")
    if "://" not in path:
        return read_file(path)
    try:
        with fsspec.open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise Unreadable(str(error)) from error


def is_media(feature):
    """Whether a column holds pictures, sound or the like, which are no labels."""
    media = (datasets.Image, datasets.Audio, datasets.Video, datasets.Pdf)
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("binary", "large_binary")
    return isinstance(feature, media)


def plain(value, feature):
    """A value of a data set as JSON's types, with the names of its classes."""
    if value is None:
        return None
    if isinstance(feature, datasets.ClassLabel):
        # -1 is "not labelled", by the library's convention.
        return feature.int2str(value) if isinstance(value, int) and value >= 0 else None
    if isinstance(feature, dict) and isinstance(value, dict):
        return {key: plain(part, feature.get(key)) for key, part in value.items()}
    if isinstance(value, dict):
        return {key: plain(part, None) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        inner = getattr(feature, "feature", None)
        return [plain(part, inner) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (bool, int, str)):
        return value
    return str(value)
