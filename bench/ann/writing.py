"""Writing: rows per second of several forms of INSERT, bytes of WAL, VACUUM.

Methods take turns, and the forms are the same for all. WAL is not waited for, and
holds images of whole pages only where these are counted: both depend on disk and
checkpoints, not on the index.
"""

import time
from dataclasses import dataclass
from statistics import median

import database
import pgbench
import store
from data import more_rows

# Rounds of VACUUM: what counts is the ratio within one, as with inserts.
ROUNDS = 3
# VACUUM after the rows of so many buckets are deleted: a tenth, spread over the table.
DELETED_BUCKETS = 10


@dataclass(frozen=True)
class Form:
    """A way to insert rows: a row a transaction, from some clients, or all by one statement.

    The rows of `same` are all alike, so that an index puts them into one list.
    """

    name: str
    words: str
    clients: int = 1
    same: bool = False
    together: bool = False

    def statement(self, table, data):
        """The INSERT: of the row :i, or of all rows."""
        number = f"(1000000 * (:client_id + 1) + :i) + {len(data)}" if self.same else f"id + {len(data)}"
        if self.together:
            return f"INSERT INTO {table} SELECT id + {len(data)}, bucket, q FROM more"
        wanted = "0" if self.same else ":i"
        return f"INSERT INTO {table} SELECT {number}, bucket, q FROM more WHERE id = {wanted}"

    def script(self, table, data, each):
        """For pgbench; each client begins `each` rows after the one before."""
        first = "" if self.same else f" + :client_id * {each}"
        return f"\\set k :k + 1\n\\set i :k{first}\n{self.statement(table, data)};\n"


ONE = Form("one", "1 client")
FORMS = (
    ONE,
    Form("four", "4 clients", clients=4),
    Form("together", "one statement", together=True),
    Form("alike", "8 clients, one list", clients=8, same=True),
)


class Writer:
    """Inserts into one table, with or without an index."""

    def __init__(self, table, data, count, own=None):
        self.table = table
        self.data = data
        self.count = count
        self.settings = {
            "synchronous_commit": "off",
            "plan_cache_mode": "force_generic_plan",
            **(own or {}),
        }

    def clear(self, connection):
        connection.execute(f"DELETE FROM {self.table} WHERE id >= {len(self.data)}")

    def run(self, form):
        """Inserts the rows; returns rows per second and bytes of WAL per row."""
        with database.connect(self.settings) as connection:
            self.clear(connection)
            before = wal_position(connection)
            if form.together:
                start = time.perf_counter()
                connection.execute(form.statement(self.table, self.data))
                rate = self.count / (time.perf_counter() - start)
            else:
                each = self.count // form.clients
                script = form.script(self.table, self.data, each)
                seconds = pgbench.run(script, self.settings, form.clients, each, {"k": -1})
                rate = pgbench.rate(pgbench.warm(seconds))
            return rate, (wal_position(connection) - before) / self.count

    def images(self):
        """Bytes of WAL per row behind a checkpoint, with images of whole pages; a row a transaction."""
        with database.connect() as connection:
            self.clear(connection)
            full_page_writes(connection, "on")
            connection.execute("CHECKPOINT")
        _, wal = self.run(ONE)
        with database.connect() as connection:
            full_page_writes(connection, "off")
        return wal

    def vacuum(self):
        """Deletes a tenth of the rows and what was inserted; returns seconds and WAL bytes of VACUUM, and rows.

        The index is cleaned in any case. The rows of the data come back afterwards.
        """
        table = self.table
        with database.connect() as connection:
            self.clear(connection)
            connection.execute("DROP TABLE IF EXISTS gone")
            gone = f"DELETE FROM {table} WHERE bucket < {DELETED_BUCKETS} RETURNING *"
            connection.execute(f"CREATE TABLE gone AS TABLE {table} WITH NO DATA")
            connection.execute(f"WITH deleted AS ({gone}) INSERT INTO gone TABLE deleted")
            rows = connection.execute("SELECT count(*) FROM gone").fetchone()[0]
            connection.execute("CHECKPOINT")
            before = wal_position(connection)
            start = time.perf_counter()
            connection.execute(f"VACUUM (INDEX_CLEANUP ON, PARALLEL 0) {table}")
            seconds = time.perf_counter() - start
            wal = wal_position(connection) - before
            connection.execute(f"INSERT INTO {table} TABLE gone")
            connection.execute("DROP TABLE gone")
        return {"seconds": seconds, "wal": wal, "rows": rows}


def prepare(data, count):
    """The rows that are inserted, in a table, and a cluster that logs no images of pages."""
    with database.connect() as connection:
        store.load_queries(connection, "more", more_rows(data, count))
    without_images()


def without_images():
    with database.connect() as connection:
        full_page_writes(connection, "off")


def finish():
    """The cluster logs images of pages again."""
    with database.connect() as connection:
        full_page_writes(connection, "on")


def inserts(writers, watch, pids, rounds):
    """{name: {form: {"rates": by round, "wal": median}, "images": bytes}} of writers by name."""
    found = {name: {form.name: [] for form in FORMS} for name in writers}
    for place in range(rounds):
        turns = list(writers.items())
        for form in FORMS:
            for name, writer in turns if place % 2 == 0 else turns[::-1]:
                found[name][form.name].append(watch.take(lambda w=writer, f=form: w.run(f), pids))
    result = {}
    for name, writer in writers.items():
        result[name] = {
            form: {"rates": [rate for rate, _ in runs], "wal": median(wal for _, wal in runs)}
            for form, runs in found[name].items()
        }
        result[name]["images"] = writer.images()
    return result


def vacuums(writers, watch, pids, rounds=ROUNDS):
    """{name: {"seconds": by round, "wal": bytes per deleted row, "rows": deleted ones of the data}}."""
    found = {name: [] for name in writers}
    for place in range(rounds):
        turns = list(writers.items())
        for name, writer in turns if place % 2 == 0 else turns[::-1]:
            # Taken as it comes: a second one would find nothing to do.
            result, share = watch.others(pids, writer.vacuum)
            watch.shares.append(share)
            found[name].append(result)
    return {
        name: {
            "seconds": [run["seconds"] for run in runs],
            # The first deletes what was inserted, too.
            "wal": runs[-1]["wal"] / runs[-1]["rows"],
            "rows": runs[-1]["rows"],
        }
        for name, runs in found.items()
    }


def full_page_writes(connection, value):
    connection.execute(f"ALTER SYSTEM SET full_page_writes = {value}")
    connection.execute("SELECT pg_reload_conf()")
    time.sleep(0.2)


def wal_position(connection):
    """Bytes of WAL that have ever been written."""
    return int(connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()[0])
