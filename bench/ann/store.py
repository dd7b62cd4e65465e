"""Tables of vectors, and the indexes on them."""

import hashlib
import sys
from pathlib import Path

import numpy as np
from data import bucket_of

SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
END = b"\xff\xff"


def binary_rows(start, rows):
    """The rows (n, dimensions) as COPY's binary format has them: id, bucket, v."""
    dimensions = rows.shape[1]
    layout = np.dtype(
        [
            ("fields", ">i2"),
            ("id_size", ">i4"),
            ("id", ">i4"),
            ("bucket_size", ">i4"),
            ("bucket", ">i2"),
            ("v_size", ">i4"),
            ("dimensions", ">i2"),
            ("unused", ">i2"),
            ("v", ">f4", (dimensions,)),
        ]
    )
    records = np.zeros(len(rows), layout)
    ids = np.arange(start, start + len(rows))
    records["fields"], records["id_size"], records["bucket_size"] = 3, 4, 2
    records["id"], records["bucket"] = ids, bucket_of(ids)
    records["v_size"], records["dimensions"], records["v"] = 4 + 4 * dimensions, dimensions, rows
    return records.tobytes()


def copy_rows(connection, table, chunks, total=None):
    """Loads chunks of (number of the first row, rows); says how far it is where `total` is given."""
    with connection.cursor().copy(f"COPY {table} FROM STDIN (FORMAT binary)") as copy:
        copy.write(SIGNATURE)
        for start, rows in chunks:
            for place in range(0, len(rows), 5000):
                copy.write(binary_rows(start + place, rows[place : place + 5000]))
            if total:
                print(f"\r  loaded {start + len(rows):,} of {total:,} rows", end="", file=sys.stderr)
        copy.write(END)
    if total:
        print(file=sys.stderr)


def create_table(connection, table, dimensions):
    connection.execute(f"DROP TABLE IF EXISTS {table} CASCADE")
    connection.execute(f"CREATE TABLE {table} (id integer, bucket smallint, v vector({dimensions}))")
    # How many workers build an index is then a matter of the settings alone.
    connection.execute(f"ALTER TABLE {table} SET (parallel_workers = 8)")


def load(connection, table, data):
    """A table of the data's rows in their order."""
    create_table(connection, table, data.dimensions)
    copy_rows(connection, table, data.chunks(), len(data))
    connection.execute(f"VACUUM ANALYZE {table}")


def load_queries(connection, table, queries):
    """A table of queries (id, q), which stay in the table's own pages whatever their size."""
    connection.execute(f"DROP TABLE IF EXISTS {table}")
    connection.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, bucket smallint, q vector)")
    connection.execute(f"ALTER TABLE {table} ALTER q SET STORAGE PLAIN")
    copy_rows(connection, table, [(0, queries)])
    connection.execute(f"VACUUM ANALYZE {table}")


def index_of(table):
    return f"{table}_index"


def drop_index(connection, table):
    connection.execute(f"DROP INDEX IF EXISTS {index_of(table)}")


def set_workers(connection, workers):
    """How many processes build an index, the leader included."""
    connection.execute(f"SET max_parallel_maintenance_workers = {workers - 1}")


def index_size(connection, table):
    """Bytes of the index."""
    query = "SELECT pg_relation_size(%s::regclass)"
    return connection.execute(query, [index_of(table)]).fetchone()[0]


def library_digest(connection, using):
    """What tells one build of an access method's library from another: versions do not change with each."""
    query = """
        SELECT (SELECT setting FROM pg_config WHERE name = 'PKGLIBDIR'), probin
        FROM pg_am JOIN pg_proc ON pg_proc.oid = amhandler WHERE amname = %s
    """
    folder, name = connection.execute(query, [using]).fetchone() or (None, None)
    if name is None:
        raise RuntimeError(f'there is no access method "{using}" with a library')
    file = Path(folder, name.removeprefix("$libdir/"))
    # A platform's ending is not part of the name.
    file = file if file.is_file() else file.with_name(file.name + ".so")
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]
