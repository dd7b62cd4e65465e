#!/usr/bin/env python3
"""Exports the vectors of a table, with their ids, for other programs.

    python export.py embeddings.npy        writes embeddings.ids.npy beside it
    python export.py embeddings.parquet    columns id, description, embedding

The .npy files hold float32 of shape (rows, dimensions) and int64 of shape (rows,), the parquet
file lists of float32 of one length; all in the order of the ids, without the rows that have no
vector. The database is libpq's: PGHOST, PGDATABASE and so on, or --dsn. Files appear when they are
complete, and replace older ones.
"""

import argparse
import sys
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg import sql
from tqdm import tqdm

# Rows that are held at a time.
CHUNK = 4096


class ExportError(Exception):
    """What cannot be exported; the message is for the user."""


def vector_of(data):
    """float32 of shape (dimensions,) from pgvector's binary form: two int16, of which the first is
    the number of dimensions, then big-endian floats."""
    return np.frombuffer(data, ">f4", offset=4).astype(np.float32)


class Vectors:
    """The vectors of a table as one transaction sees them."""

    def __init__(self, connection, table):
        self.connection = connection
        self.identifier = sql.Identifier(*table.split("."))
        self.rows, least, self.dimensions = self._execute(
            "SELECT count(*), min(vector_dims(desc_vec)), max(vector_dims(desc_vec)) FROM {table}"
            " WHERE desc_vec IS NOT NULL"
        ).fetchone()
        if self.rows == 0:
            raise ExportError(f"table {table} has no vectors")
        if least != self.dimensions:
            raise ExportError(
                f"table {table} has vectors of {least} to {self.dimensions} dimensions"
            )

    def _execute(self, statement):
        return self.connection.execute(sql.SQL(statement).format(table=self.identifier))

    def chunks(self):
        """Lists of ids and descriptions, and float32 of shape (rows of the chunk, dimensions)."""
        statement = sql.SQL(
            "COPY (SELECT id::bigint, description, desc_vec::vector FROM {table}"
            " WHERE desc_vec IS NOT NULL ORDER BY id) TO STDOUT (FORMAT binary)"
        ).format(table=self.identifier)
        with (
            self.connection.cursor() as cursor,
            cursor.copy(statement) as copy,
            tqdm(desc="export", total=self.rows, unit="row") as bar,
        ):
            # The bytes of a vector as they are.
            copy.set_types(["bigint", "text", "bytea"])
            rows = copy.rows()
            while chunk := list(islice(rows, CHUNK)):
                ids, descriptions, data = zip(*chunk, strict=True)
                yield ids, descriptions, np.stack([vector_of(each) for each in data])
                bar.update(len(chunk))


def write_npy(vectors, file):
    """Writes vectors to `file` and ids beside it, in bounded memory."""
    shape = (vectors.rows, vectors.dimensions)
    with replacing(file.with_suffix(".ids.npy")) as ids_part, replacing(file) as part:
        all_vectors = np.lib.format.open_memmap(part, "w+", np.float32, shape)
        all_ids = np.lib.format.open_memmap(ids_part, "w+", np.int64, shape[:1])
        start = 0
        for ids, _, chunk in vectors.chunks():
            all_vectors[start : start + len(ids)] = chunk
            all_ids[start : start + len(ids)] = ids
            start += len(ids)
        all_vectors.flush()
        all_ids.flush()


def write_parquet(vectors, file):
    """Writes ids, descriptions and vectors, a row group at a time."""
    embedding = pa.list_(pa.float32(), vectors.dimensions)
    schema = pa.schema([("id", pa.int64()), ("description", pa.string()), ("embedding", embedding)])
    with replacing(file) as part, pq.ParquetWriter(part, schema) as writer:
        for ids, descriptions, chunk in vectors.chunks():
            flat = pa.array(chunk.reshape(-1))
            lists = pa.FixedSizeListArray.from_arrays(flat, vectors.dimensions)
            writer.write_table(
                pa.table([pa.array(ids), pa.array(descriptions, pa.string()), lists], schema)
            )


@contextmanager
def replacing(file):
    """A path to write to, which becomes the file when all went well, and nothing otherwise."""
    part = file.with_name(f".{file.name}.part")
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


WRITERS = {".npy": write_npy, ".parquet": write_parquet}


def main(arguments=None):
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dsn", default="", help="connection string of libpq")
    parser.add_argument("--table", default="picture")
    parser.add_argument("file", type=Path, help="ends in .npy or .parquet")
    args = parser.parse_args(arguments)
    write = WRITERS.get(args.file.suffix)
    if write is None:
        parser.error(f"{args.file} does not end in {' or '.join(WRITERS)}")
    try:
        with psycopg.connect(args.dsn) as connection:
            # Count and rows are of one moment.
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            write(Vectors(connection, args.table), args.file)
    except (ExportError, psycopg.Error, OSError) as error:
        print(f"error: {str(error).strip()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
