"""faiss_ivf against pgvector's ivfflat: build time, size, and speed at equal recall.

Both index the same vectors with the same number of lists and inner product, in
one cluster, and are measured in turns in one run. See README.md.
"""

import argparse
import math
import os
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import corpus
import database
import glosses
import numpy as np
import psycopg
from measuring import (
    Report,
    Watch,
    add_watch_options,
    cpu_seconds,
    in_turns,
    markdown_table,
    ratios,
    spread,
)

NEIGHBOURS = 10
TARGETS = (0.90, 0.95, 0.99)
LADDER = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
# The ladder ends where all methods reach this.
ENOUGH = 0.995
# A score this little below the tenth counts as a tie with it.
TIE = 1e-6


@dataclass(frozen=True)
class Method:
    """An index access method on pgvector's type."""

    name: str
    probes: str
    iterative: str

    @property
    def table(self):
        """Each method has a table of its own: the planner would choose among indexes of one."""
        return f"item_{self.name}"

    @property
    def index(self):
        return f"{self.table}_index"

    @property
    def query(self):
        return f"SELECT id FROM {self.table} ORDER BY vector <#> %b LIMIT {NEIGHBOURS}"


IVFFLAT = Method("ivfflat", "ivfflat.probes", "ivfflat.iterative_scan")
FAISS = Method("faiss_ivf", "faiss_ivf.nprobe", "faiss_ivf.iterative_scan")
METHODS = {method.name: method for method in (IVFFLAT, FAISS)}


@dataclass
class Build:
    """Seconds and processor seconds of each CREATE INDEX, and the last one's size in bytes."""

    wall: list
    cpu: list
    size: int


@dataclass
class Point:
    """One setting of one method: seconds of every query, by round."""

    probes: int
    recall: float
    rounds: list

    def rates(self):
        """Queries per second of each round."""
        return [len(seconds) / sum(seconds) for seconds in self.rounds]

    def milliseconds(self, percentile):
        return 1000 * np.percentile(np.concatenate(self.rounds), percentile)


class Exact:
    """The true neighbours of the queries by inner product."""

    def __init__(self, rows, queries):
        self.scores = queries @ rows.T
        kept = np.partition(self.scores, -NEIGHBOURS, axis=1)
        self.tenth = kept[:, -NEIGHBOURS]

    def recall(self, answers):
        """Mean share of the ten nearest among what was returned; ids are row numbers."""
        found = 0
        for scores, tenth, ids in zip(self.scores, self.tenth, answers, strict=True):
            found += np.count_nonzero(scores[list(set(ids))] >= tenth - TIE)
        return min(found / (NEIGHBOURS * len(answers)), 1.0)


def load(connection, rows):
    """Creates each method's table with the same rows in the same order."""
    for method in METHODS.values():
        connection.execute(f"DROP TABLE IF EXISTS {method.table}")
        connection.execute(f"CREATE TABLE {method.table} (id integer, vector vector({rows.shape[1]}))")
        with connection.cursor().copy(f"COPY {method.table} FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["int4", "vector"])
            for place, row in enumerate(rows):
                copy.write_row((place, row))
        connection.execute(f"VACUUM ANALYZE {method.table}")


def build_all(watch, connection, lists, times):
    """Builds each index so many times, in turns; the last ones stay."""
    builds = {name: Build([], [], 0) for name in METHODS}
    backend = [connection.info.backend_pid]

    def build(method, _):
        connection.execute(f"DROP INDEX IF EXISTS {method.index}")
        connection.execute("CHECKPOINT")
        cpu, start = cpu_seconds(backend), time.perf_counter()
        connection.execute(
            f"CREATE INDEX {method.index} ON {method.table} "
            f"USING {method.name} (vector vector_ip_ops) WITH (lists = {lists})"
        )
        return time.perf_counter() - start, cpu_seconds(backend) - cpu

    pids = [os.getpid(), *database.processes(connection)]
    for _ in range(times):
        pair = watch.take(lambda: dict(in_turns(METHODS, [None], build)), pids)
        for name, (wall, cpu) in pair.items():
            print(f"  built {name} in {wall:.1f} s", file=sys.stderr)
            builds[name].wall.append(wall)
            builds[name].cpu.append(cpu)
    for name, method in METHODS.items():
        size = connection.execute("SELECT pg_relation_size(%s::regclass)", [method.index])
        builds[name].size = size.fetchone()[0]
    return builds


class Searcher:
    """A connection that searches one method's index.

    The plan is made once and kept, and reading the table is ruled out: what is
    compared is the indexes, not the planner's thresholds.
    """

    def __init__(self, method, queries):
        self.method = method
        self.queries = queries
        self.connection = database.connect(
            {
                "plan_cache_mode": "force_generic_plan",
                "enable_seqscan": "off",
                "max_parallel_workers_per_gather": 0,
            }
        )
        self.connection.execute(f"SET {method.iterative} = off")

    def set_probes(self, probes):
        """How many lists a query reads from now on; checks that it uses the index."""
        self.connection.execute(f"SET {self.method.probes} = {probes}")
        plan = self.connection.execute(f"EXPLAIN {self.method.query}", [self.queries[0]]).fetchall()
        if not any(f"Index Scan using {self.method.index}" in line for (line,) in plan):
            raise RuntimeError("a query does not use its index:\n" + "\n".join(line for (line,) in plan))

    def search(self):
        """Answers of all queries and the seconds that each took."""
        answers, seconds = [], []
        with self.connection.cursor(binary=True) as cursor:
            for query in self.queries:
                start = time.perf_counter()
                rows = cursor.execute(self.method.query, [query], prepare=True).fetchall()
                seconds.append(time.perf_counter() - start)
                answers.append([row[0] for row in rows])
        return answers, seconds


def search_once(searcher, _):
    """Seconds of each query of one round."""
    return searcher.search()[1]


class Bench:
    """Both methods' searchers, and what is known of their recall."""

    def __init__(self, watch, exact, queries, lists, rounds):
        self.watch = watch
        self.searchers = {name: Searcher(method, queries) for name, method in METHODS.items()}
        self.exact = exact
        self.lists = lists
        self.rounds = rounds
        self.recall = cache(self.measure_recall)
        connection = self.searchers[FAISS.name].connection
        self.pids = [os.getpid(), *database.processes(connection)]

    def measure_recall(self, name, probes):
        """Recall of a method that reads so many lists. Kept for each setting."""
        self.searchers[name].set_probes(probes)
        return self.exact.recall(self.searchers[name].search()[0])

    def least_probes(self, name, target):
        """The least number of lists at which the recall reaches the target; None if it never does."""
        low, high = 0, 1
        while self.recall(name, high) < target:
            if high == self.lists:
                return None
            low, high = high, min(2 * high, self.lists)
        while high - low > 1:
            middle = (low + high) // 2
            if self.recall(name, middle) < target:
                low = middle
            else:
                high = middle
        return high

    def compare(self, probes):
        """Measures the methods in turns, each at its own setting; returns a Point of each."""
        points = {}
        for name, searcher in self.searchers.items():
            recall = self.recall(name, probes[name])
            searcher.set_probes(probes[name])
            # The pages, and what the backend caches, are warm after this.
            searcher.search()
            points[name] = Point(probes[name], recall, [])

        def take_turns():
            return list(in_turns(self.searchers, range(self.rounds), search_once))

        for name, seconds in self.watch.take(take_turns, self.pids):
            points[name].rounds.append(seconds)
        rates = ", ".join(
            f"{name} {median(point.rates()):.0f} QPS at {point.recall:.3f} ({point.probes} lists)"
            for name, point in points.items()
        )
        print(f"  {rates}", file=sys.stderr)
        return points

    def ladder(self):
        """Comparisons at equal numbers of lists, until all find nearly everything."""
        for probes in LADDER:
            if probes > self.lists:
                return
            points = self.compare(dict.fromkeys(self.searchers, probes))
            yield points
            if all(point.recall >= ENOUGH for point in points.values()):
                return

    def targets(self):
        """(recall, comparison) where each method reads the least lists that reach the recall."""
        for target in TARGETS:
            probes = {name: self.least_probes(name, target) for name in self.searchers}
            if all(probes.values()):
                yield target, self.compare(probes)


def build_table(builds):
    """Build time and size; ratios above 1 are in faiss_ivf's favour."""
    rows = [
        [name, spread(build.wall, 1), spread(build.cpu, 1), f"{build.size / 2**20:.0f}"]
        for name, build in builds.items()
    ]
    theirs, ours = builds[IVFFLAT.name], builds[FAISS.name]
    rows.append(
        [
            "**ratio**",
            spread(ratios(theirs.wall, ours.wall), 2),
            spread(ratios(theirs.cpu, ours.cpu), 2),
            f"{theirs.size / ours.size:.2f}",
        ]
    )
    return markdown_table(["build, one worker", "seconds", "CPU seconds", "size in MiB"], rows)


def search_table(first, comparisons):
    """One row for each (label, comparison); queries per second are the rounds' median."""
    header = [first]
    for name in METHODS:
        header += [f"{name}: lists read", "recall", "QPS", "p50 ms", "p95 ms"]
    rows = []
    for label, points in comparisons:
        row = [label]
        for point in points.values():
            row += [point.probes, f"{point.recall:.3f}", f"{median(point.rates()):,.0f}"]
            row += [f"{point.milliseconds(percentile):.2f}" for percentile in (50, 95)]
        quotients = ratios(points[FAISS.name].rates(), points[IVFFLAT.name].rates())
        rows.append([*row, spread(quotients, 2)])
    return markdown_table([*header, "**QPS ratio**"], rows)


def read_vectors(connection, args):
    """The vectors and, in words, what they are."""
    if args.vectors:
        return np.load(args.vectors).astype(np.float32), f"vectors of {Path(args.vectors).name}"
    count = None if args.rows is None else args.rows + args.queries
    vectors = corpus.embedded_glosses(connection, args.wordnet, args.model, args.threads, args.cache, count)
    return vectors, "WordNet glosses, embedded"


def run(args):
    """Measures and reports."""
    report = Report("Index")
    watch = Watch(args.others, args.patience)
    settings = {"max_parallel_maintenance_workers": 0, "maintenance_work_mem": "1GB"}
    with database.connect(settings) as connection:
        vectors, source = read_vectors(connection, args)
        queries, rows = corpus.split(vectors, args.queries)
        rows = rows[: args.rows]
        lists = args.lists or round(math.sqrt(len(rows)))
        load(connection, rows)
        builds = build_all(watch, connection, lists, args.builds)
        versions = database.versions(connection)
    bench = Bench(watch, Exact(rows, queries), queries, lists, args.rounds)
    targets = [(f"{target:.2f}", points) for target, points in bench.targets()]
    ladder = [(points[FAISS.name].probes, points) for points in bench.ladder()]
    report.add(
        build_table(builds),
        f"At equal recall@{NEIGHBOURS}, with the least lists that reach it:",
        search_table("recall at least", targets),
        "At equal numbers of lists read:",
        search_table("lists read", ladder),
    )
    conditions = [
        f"{len(rows):,} {source}, {rows.shape[1]} dimensions; {len(queries)} others as queries; "
        f"inner product; {lists} lists in each index",
        f"{args.builds} builds and {args.rounds} rounds of all queries, in turns; median and range; "
        "one client, prepared statements, binary, warm; the client's time is included",
        versions,
    ]
    report.finish(watch, conditions, args.save)


def row_count(text):
    """--rows: a number, or None for all."""
    return None if text == "all" else int(text)


def arguments():
    parser = argparse.ArgumentParser(
        description="faiss_ivf against ivfflat, libpq's variables name the database."
    )
    parser.add_argument("--wordnet", help="folder of WordNet's files data.*")
    parser.add_argument(
        "--vectors", metavar="FILE", help="instead of glosses: a .npy file, float (n, dimensions)"
    )
    parser.add_argument("--cache", default=".", help="folder of embedded glosses (default: this one)")
    parser.add_argument(
        "--model",
        default=database.default_model(),
        help="directory of the encoder of the glosses (default: PG_SIGHT_MINILM)",
    )
    parser.add_argument(
        "--rows", type=row_count, default=30_000, help='number or "all" (default %(default)s)'
    )
    parser.add_argument("--queries", type=int, default=300, help="default %(default)s")
    parser.add_argument("--lists", type=int, help="of each index (default: square root of the rows)")
    parser.add_argument("--builds", type=int, default=3, help="of each index (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="that embed the glosses (default %(default)s)")
    add_watch_options(parser)
    parser.add_argument("--save", metavar="FILE", help="write the report into a file too")
    args = parser.parse_args()
    if not args.vectors and not (args.wordnet and args.model):
        parser.error("--vectors, or --wordnet and --model (or PG_SIGHT_MINILM), must say what to index")
    if min(args.queries, args.builds, args.rounds) < 1 or (args.rows or NEIGHBOURS) < NEIGHBOURS:
        parser.error(f"numbers must be positive, and rows at least {NEIGHBOURS}")
    return args


if __name__ == "__main__":
    try:
        run(arguments())
    except KeyboardInterrupt:
        sys.exit(130)
    except (glosses.MissingGlosses, psycopg.Error, OSError, RuntimeError) as error:
        sys.exit(f"error: {str(error).strip()}")
