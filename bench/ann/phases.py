"""What is measured besides search and writing: building, starting cold, filters, drift, memory."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import database
import numpy as np
import store
from data import CHUNK, bucket_of, more_rows_into, moved
from processes import PeakMemory, fields_of, private_memory
from search import TARGETS, least_setting, remembered, summary
from truth import Truth, tenth_scores, truth

WORKERS = (1, 2)
FILTERS = (1, 10)
COLD_STARTS = 3
# Queries with which settings are sought under a filter: scans that go on take a hundred
# times as long where few rows fulfil it.
FILTERED = 100
# Of all queries with a filter, and after the table has doubled.
ROUNDS = 3
# Queries of a new connection that are looked at.
FIRST = 20
MIDDLE = f"{TARGETS[1]:.2f}"


def build_connection(memory):
    """A new connection that has as much memory for a build."""
    return database.connect({"maintenance_work_mem": memory})


def build(watch, pids, method, table, data, lists, memory, workers):
    """Makes the index anew; returns seconds, peak private memory and size in bytes."""

    def once():
        with build_connection(memory) as connection:
            if method.extension:
                connection.execute(f"CREATE EXTENSION IF NOT EXISTS {method.extension} CASCADE")
            store.drop_index(connection, table)
            connection.execute("CHECKPOINT")
            store.set_workers(connection, workers)
            statement = method.create_index(store.index_of(table), table, data.metric, lists)
            with PeakMemory(connection.info.backend_pid) as memory_used:
                start = time.perf_counter()
                connection.execute(statement)
                seconds = time.perf_counter() - start
            return seconds, memory_used.peak, store.index_size(connection, table)

    seconds, peak, size = watch.take(once, pids) if watch else once()
    print(f"  built {method.name} in {seconds:.1f} s, processes: {workers}", file=sys.stderr)
    return {"seconds": seconds, "memory": peak, "size": size}


def build_rounds(watch, pids, methods, data, lists, memory, times, chosen=WORKERS):
    """{name: {"1": [build], "2": [build]}}; methods take turns. `methods`: (method, table) pairs.

    `chosen` are the numbers of processes.
    """
    results = {method.name: {str(workers): [] for workers in chosen} for method, _ in methods}
    for workers in chosen:
        for place in range(times):
            for method, table in methods if place % 2 == 0 else methods[::-1]:
                made = build(watch, pids, method, table, data, lists, memory, workers)
                results[method.name][str(workers)].append(made)
    return results


def memory(candidate, setting):
    """Private bytes of a backend before its first query and after all queries."""
    candidate.close()
    connection = candidate.prepare(setting)
    pid = connection.info.backend_pid
    before = private_memory(pid)
    candidate.answers(setting)
    after = private_memory(pid)
    candidate.close()
    return {"before": before, "after": after}


def restart(command):
    """Restarts the server and empties the system's page cache if that is allowed; True if it was."""
    subprocess.run(shlex.split(command), check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["sync"], check=True)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        return False
    return True


def first_queries(candidate, setting):
    """Seconds of the first queries of a new connection: float64 (FIRST,). Planning the first is included."""
    with database.connect(candidate.settings(setting)) as connection:
        statement = candidate.select("%b")
        seconds = []
        with connection.cursor(binary=True) as cursor:
            for query in candidate.queries[:FIRST]:
                start = time.perf_counter()
                cursor.execute(statement, [query], prepare=True).fetchall()
                seconds.append(time.perf_counter() - start)
    return np.array(seconds)


def cold(candidate, setting, command):
    """Milliseconds of the first query after a restart, of the next ones, and of a new connection's first."""
    candidate.close()
    starts, dropped = [], True
    for _ in range(COLD_STARTS):
        dropped = restart(command) and dropped
        starts.append(1000 * first_queries(candidate, setting))
    first = [float(times[0]) for times in starts]
    following = [float(np.mean(times[1:])) for times in starts]
    new = [float(1000 * first_queries(candidate, setting)[0]) for _ in range(COLD_STARTS)]
    return {"first": first, "following": following, "connection": new, "dropped": dropped}


def regain(candidate, recall, watch, pids, condition=""):
    """Speed at the least setting that reaches the middle target, or None if none does.

    recall(setting) is that of queries with the condition.
    """
    setting = least_setting(recall, float(MIDDLE), candidate.least, candidate.most)
    if setting is None:
        return None
    # Its pages are warm after this.
    candidate.seconds(setting, condition=condition)

    def rounds():
        return [candidate.seconds(setting, condition=condition) for _ in range(ROUNDS)]

    return {"setting": setting, "recall": recall(setting), **summary(watch.take(rounds, pids))}


def filters(candidate, setting, data, cache, watch, pids):
    """{percent: results} of the first queries WHERE bucket < percent.

    Recall at an unfiltered search's setting, and what `regain` tells.
    """
    results = {}
    asked, candidate.queries = candidate.queries, candidate.queries[:FILTERED]
    few = replace(data, queries=candidate.queries)
    for percent in FILTERS:
        condition = f"bucket < {percent}"
        kept = bucket_of(np.arange(len(data))) < percent
        known = truth(few, cache, kept, condition)
        recall = remembered(candidate, known, condition)
        again = regain(candidate, recall, watch, pids, condition)
        results[str(percent)] = {"setting": setting, "recall": recall(setting), "again": again}
    candidate.queries = asked
    return results


class Drift:
    """The table after it has doubled with rows of a shifted distribution.

    Half of the queries are those from before, half are shifted as the rows are.
    """

    SHIFT = 0.5

    def __init__(self, data, folder):
        """The doubled rows lie in a nameless file in the folder, as they may be larger than memory."""
        self.data = data
        count = len(data)
        with tempfile.TemporaryFile(dir=folder) as file:
            rows = np.memmap(file, np.float32, "w+", shape=(2 * count, data.dimensions))
        for start, chunk in data.chunks():
            rows[start : start + len(chunk)] = chunk
        more_rows_into(rows[count:], data, self.SHIFT)
        half = len(data.queries) // 2
        # No seed that a piece of the rows has.
        shifted = moved(data.queries[half:], data.metric, self.SHIFT, seed=1)
        self.queries = np.concatenate([data.queries[:half], shifted])
        self.doubled = replace(data, rows=rows, queries=self.queries)
        self.truth = Truth(self.doubled, tenth_scores(self.doubled))

    def added(self):
        """(number of the first row, rows) of what is added, in pieces."""
        count = len(self.data)
        for start in range(count, 2 * count, CHUNK):
            yield start, self.doubled.rows[start : start + CHUNK]

    def measure(self, candidate, setting, watch, pids):
        """Recall at the setting from before, and speed where the recall is again what it was to be."""
        before, asked = candidate.queries, candidate.query_table
        with database.connect() as connection:
            start = time.perf_counter()
            store.copy_rows(connection, candidate.table, self.added())
            seconds = time.perf_counter() - start
            connection.execute(f"ANALYZE {candidate.table}")
            store.load_queries(connection, "moved_query", self.queries)
        candidate.queries, candidate.query_table = self.queries, "moved_query"
        recall = remembered(candidate, self.truth)
        again = regain(candidate, recall, watch, pids)
        result = {"setting": setting, "recall": recall(setting), "again": again}
        result["copy"] = len(self.data) / seconds
        candidate.queries, candidate.query_table = before, asked
        with database.connect() as connection:
            connection.execute(f"DELETE FROM {candidate.table} WHERE id >= {len(self.data)}")
            store.drop_index(connection, candidate.table)
            connection.execute(f"VACUUM {candidate.table}")
        return result


def server_pids():
    """This process and the server's first one, whose children are all others."""
    with database.connect() as connection:
        _, parent, *_ = fields_of(connection.info.backend_pid)
    return [os.getpid(), int(parent)]
