#!/usr/bin/env python3
"""Loads pictures into a table of PostgreSQL: from a folder, a Hugging Face data set, or S3.

    python load.py folder pictures/
    python load.py dataset owner/name --config mini --split train
    python load.py preset snacks pets
    python load.py s3 s3://bucket/prefix

The database is libpq's: PGHOST, PGDATABASE and so on, or --dsn. The table, by default `picture`, is
created where it is not there. The encoded bytes are stored as they are. Each content is stored
once, so that the same command, after a crash or Ctrl-C, goes on where it was; what is committed
stays.

Exits with 1 when pictures could not be read (they are listed at the end, the others are there) or
when it could not go on, with 130 after Ctrl-C.
"""

import argparse
import hashlib
import os
import signal
import sys
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import psycopg
from tqdm import tqdm

from loading.check import check
from loading.source import SourceError, Unreadable
from loading.table import Picture, Table, TableError

# One transaction takes at most so many pictures; fewer where a trigger describes each of them.
BATCH_ROWS = 500
BATCH_ROWS_TRIGGER = 16
# It ends when it has so many bytes.
BATCH_BYTES = 32 << 20
# Those that read ahead.
THREADS = 8
# Candidates are looked up in the table by so many.
GROUP = 500
# Of unreadable pictures so many are listed; the others are counted.
LISTED = 1000


@dataclass
class Tally:
    """What became of the pictures."""

    new: int = 0
    there: int = 0
    same: int = 0
    left_out: int = 0
    unreadable: int = 0
    reasons: list = field(default_factory=list)

    def refuse(self, source, name, reason):
        """Notes a picture that cannot be had."""
        self.unreadable += 1
        if len(self.reasons) < LISTED:
            self.reasons.append(f"{source} {name}: {reason}")


class Loader:
    """Reads and checks candidates in threads, and adds them to the table batch by batch.

    At any time it holds a batch and the pictures that are read ahead, two for each thread.
    """

    def __init__(self, table, batch_rows=BATCH_ROWS, headers_only=False):
        self.table = table
        self.batch_rows = batch_rows
        self.limits = table.limits()
        self.headers_only = headers_only
        self.tally = Tally()

    def load(self, source, limit=None):
        """Loads a source, or its first pictures."""
        total = source.total()
        if limit is not None:
            total = limit if total is None else min(limit, total)
        pool = ThreadPoolExecutor(THREADS)
        try:
            with progress(source.name, total) as bar:
                self._load(source, islice(source, limit), pool, bar)
        finally:
            # After an error nobody wants what is still being read.
            pool.shutdown(wait=False, cancel_futures=True)
            self.tally.left_out += source.left_out

    def _load(self, source, candidates, pool, bar):
        batch, held = [], 0
        wanted = self._unknown(source, candidates, bar)
        for candidate, picture in in_order(pool, self._read, source, wanted):
            if isinstance(picture, Unreadable):
                self.tally.refuse(source.name, candidate.name, picture)
                bar.update()
                continue
            batch.append(picture)
            held += len(picture.image)
            if len(batch) >= self.batch_rows or held >= BATCH_BYTES:
                self._add(batch, bar)
                batch, held = [], 0
        self._add(batch, bar)

    def _unknown(self, source, candidates, bar):
        """Those that must be read: whose content is not known to be there."""
        if not source.tagged:
            # Singly: a data set's candidates hold their pictures.
            yield from candidates
            return
        while group := list(islice(candidates, GROUP)):
            known = self.table.known(source.name, group)
            for candidate in group:
                if candidate.name in known:
                    self.tally.there += 1
                    bar.update()
                else:
                    yield candidate

    def _read(self, source, candidate):
        """The picture of a candidate, or the `Unreadable` that says why there is none."""
        try:
            if candidate.size is not None:
                self.limits.check_size(candidate.size)
            image = candidate.read()
            check(image, self.limits, self.headers_only)
        except Unreadable as reason:
            return candidate, reason
        return candidate, Picture(
            sha256=hashlib.sha256(image).digest(),
            source=source.name,
            name=candidate.name,
            etag=candidate.etag,
            labels=candidate.labels,
            image=image,
        )

    def _add(self, batch, bar):
        if not batch:
            return
        added = self.table.add(batch)
        self.tally.new += added.new
        self.tally.there += added.there
        self.tally.same += len(batch) - added.new - added.there - len(added.refused)
        for name, reason in added.refused:
            self.tally.refuse(batch[0].source, name, reason)
        bar.update(len(batch))


def in_order(pool, function, source, items):
    """Results of function(source, item) in the items' order, of which few are computed ahead."""
    pending = deque()
    for item in items:
        pending.append(pool.submit(function, source, item))
        if len(pending) > 2 * THREADS:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def progress(name, total):
    """A bar; where nobody watches, a line every few seconds is enough."""
    seconds = 0.1 if sys.stderr.isatty() else 5
    return tqdm(desc=name, total=total, unit="pic", mininterval=seconds, dynamic_ncols=True)


def sources(args):
    """The sources that the command line names, each opened when its turn comes."""
    # Each kind brings libraries that the others need not wait for.
    if args.kind == "folder":
        from loading.folder import FolderSource

        yield FolderSource(args.folder)
    elif args.kind == "s3":
        from loading.s3 import S3Source

        yield S3Source(args.url, args.endpoint_url, THREADS)
    else:
        yield from datasets(args)


def datasets(args):
    """The same for data sets."""
    from loading.hub import PRESETS, open_dataset

    if args.kind == "dataset":
        yield from open_dataset(args.path, args.config, args.split, args.revision, args.column)
        return
    for name in args.names:
        if name not in PRESETS:
            raise SourceError(f"there is no preset {name}, only {', '.join(PRESETS)}")
    for name in args.names or PRESETS:
        yield from open_dataset(*PRESETS[name])


def parse(arguments):
    """The command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--dsn", default="", help="connection string of libpq")
    common.add_argument(
        "--table", default="picture", help="created where it is not there (picture)"
    )
    common.add_argument(
        "--dimensions", type=positive, help="of the vectors, where embed() has no model yet"
    )
    common.add_argument("--trigger", action="store_true", help="describe and embed while loading")
    common.add_argument(
        "--headers-only", action="store_true", help="check pictures by their headers"
    )
    common.add_argument(
        "--batch", type=positive, help="pictures in one transaction (500, with --trigger 16)"
    )
    common.add_argument(
        "--limit", type=positive, help="take the first so many pictures of each source"
    )
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    folder = kinds.add_parser("folder", parents=[common], help="a folder and the folders in it")
    folder.add_argument("folder")
    dataset = kinds.add_parser(
        "dataset", parents=[common], help="a data set of Hugging Face's library"
    )
    dataset.add_argument("path", help="owner/name on the hub, or a local folder")
    dataset.add_argument("--config")
    dataset.add_argument("--split", help="one split; without it all")
    dataset.add_argument("--revision", help="branch, tag or commit on the hub")
    dataset.add_argument("--column", help="of the pictures, where there are several")
    preset = kinds.add_parser(
        "preset", parents=[common], help="parts of known data sets of the hub"
    )
    preset.add_argument("names", nargs="*", help="without a name all of them")
    s3 = kinds.add_parser("s3", parents=[common], help="objects in S3 or a store like it")
    s3.add_argument("url", help="s3://bucket/prefix")
    s3.add_argument("--endpoint-url", help="of the store; else AWS_ENDPOINT_URL, or Amazon")
    return parser.parse_args(arguments)


def positive(text):
    """A whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def report(tally):
    """Says what became of the pictures."""
    for reason in tally.reasons:
        print(f"unreadable: {reason}", file=sys.stderr)
    if tally.unreadable > len(tally.reasons):
        print(f"unreadable: {tally.unreadable - len(tally.reasons)} more", file=sys.stderr)
    print(
        f"{tally.new} added, {tally.there} were there, {tally.same} have the content of another,"
        f" {tally.unreadable} unreadable, {tally.left_out} files left out by their names"
    )


def main(arguments=None):
    """Returns the exit status."""
    args = parse(arguments)
    # A service manager's stop is as clean as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Pillow warns of damaged metadata, which nobody asks for here.
    warnings.filterwarnings("ignore", module="PIL")
    loader = None
    try:
        with psycopg.connect(args.dsn, autocommit=True) as connection:
            table = Table(connection, args.table)
            table.prepare(args.dimensions, args.trigger)
            batch_rows = args.batch or (BATCH_ROWS_TRIGGER if args.trigger else BATCH_ROWS)
            loader = Loader(table, batch_rows, args.headers_only)
            for source in sources(args):
                loader.load(source, args.limit)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        status = 130
    except (SourceError, TableError, psycopg.Error) as error:
        print(f"error: {str(error).strip()}", file=sys.stderr)
        status = 1
    else:
        status = 1 if loader.tally.unreadable else 0
    if loader is not None:
        report(loader.tally)
    return status


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Not sys.exit: it would wait for pictures that are still being read after Ctrl-C.
    os._exit(code)
