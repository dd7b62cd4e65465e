"""The model server under sessions: throughput, overhead and latency, through SQL.

See README.md. The raw loop that UPDATE is compared with is crates/models' example
`speed`: the same model in a process of its own, without server and database.
"""

import argparse
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import database
import glosses
import numpy as np
import psycopg
from measuring import (
    Report,
    Watch,
    add_watch_options,
    clock,
    markdown_table,
    measure_rounds,
    ratios,
    spread,
)

CAPTIONER = "captioner"
ROW = "UPDATE item SET v = embed(t, %s)"
BATCHED = """
    UPDATE item SET v = b.v FROM (
        SELECT ids.id, ids.v FROM (
            SELECT array_agg(id ORDER BY id) AS ids, embed_batch(array_agg(t ORDER BY id), %s) AS vs
            FROM item) AS a, unnest(a.ids, a.vs) AS ids (id, v)) AS b
    WHERE item.id = b.id"""


class Sessions:
    """Sessions that embed one text after the other, as a candidate."""

    def __init__(self, connections, pids):
        self.connections = connections
        self.pids = pids

    def call(self, _method, texts):
        """Embeds all texts, each session its share."""
        return clock(lambda: self.embed(texts))

    def embed(self, texts):
        count = len(self.connections)
        shares = [texts[start::count] for start in range(count)]
        work = [
            threading.Thread(target=embed_each, args=pair)
            for pair in zip(self.connections, shares, strict=True)
        ]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()


def embed_each(connection, texts):
    """Seconds of each text, embedded alone."""
    query = "SELECT embed(%b, %b)"
    arguments = {"binary": True, "prepare": True}
    return [
        clock(lambda text=text: connection.execute(query, [text, database.MODEL], **arguments).fetchone())[1]
        for text in texts
    ]


class Statement:
    """A statement over the table `item`, as a candidate."""

    def __init__(self, connection, statement, pids):
        self.connection = connection
        self.statement = statement
        self.pids = pids

    def call(self, _method, _work):
        return clock(lambda: self.connection.execute(self.statement, [database.MODEL]))


class RawLoop:
    """The model without server and database, as a candidate."""

    def __init__(self, program, model, texts, threads):
        self.file = tempfile.NamedTemporaryFile("w", suffix=".txt")
        self.file.write("\n".join(texts))
        self.file.flush()
        self.process = subprocess.Popen(
            [program, str(model), self.file.name, "turns"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"RAYON_NUM_THREADS": str(threads)},
        )
        # The time that loading took.
        self.process.stdout.readline()
        self.pids = [self.process.pid]

    def call(self, _method, _work):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return None, float(self.process.stdout.readline())


def rates(title, times, count):
    """A table of texts per second of each candidate."""
    rows = [[name, spread([count / wall for wall in taken.wall], 1)] for name, taken in times.items()]
    names = list(times)
    for name in names[:-1]:
        ratio = spread(ratios(times[names[-1]].wall, times[name].wall), 2)
        rows.append([f"**{name} : {names[-1]}**", ratio])
    return markdown_table([title, "texts per second"], rows)


def measure_sessions(args, watch, pids, texts, connections):
    """Throughput of many sessions against one."""
    candidates = {
        f"{len(connections)} sessions": Sessions(connections, pids),
        "1 session": Sessions(connections[:1], pids),
    }
    times, _ = measure_rounds(
        watch,
        pids,
        candidates,
        [texts],
        lambda candidate, work: candidate.call("embed", work),
        args.rounds,
        lambda seconds: f"{len(texts) / seconds:.0f} texts/s",
    )
    return rates("single texts", times, len(texts))


def make_table(connection, texts):
    """A row for each text, without a vector."""
    connection.execute("DROP TABLE IF EXISTS item")
    connection.execute("CREATE TABLE item (id serial PRIMARY KEY, t text, v vector)")
    with connection.cursor().copy("COPY item (t) FROM STDIN") as copy:
        for text in texts:
            copy.write_row([text])


def measure_updates(args, watch, pids, texts, connection):
    """Throughput of UPDATE against the raw loop."""
    raw = RawLoop(args.speed, args.model, texts, args.threads)
    candidates = {
        "UPDATE, row by row": Statement(connection, ROW, pids),
        "UPDATE, batched": Statement(connection, BATCHED, pids),
        "raw loop": raw,
    }
    times, _ = measure_rounds(
        watch,
        [*pids, *raw.pids],
        candidates,
        [texts],
        lambda candidate, work: candidate.call("update", work),
        args.rounds,
        lambda seconds: f"{len(texts) / seconds:.0f} texts/s",
    )
    raw.process.stdin.close()
    raw.process.wait()
    return rates(f"{len(texts):,} rows", times, len(texts))


def measure_cached(args, watch, pids, connection):
    """Microseconds of a call whose vector is in the server's cache."""
    calls = "SELECT count({}) FROM generate_series(1, %s) AS i"
    text = "'motor oil ' || i %% 50"
    embed = calls.format(f"embed({text}, '{database.MODEL}')")
    nothing = calls.format(f"'{database.MODEL}' || {text}")
    connection.execute(embed, [100])

    def measure():
        return [clock(lambda q=query: connection.execute(q, [args.cached]))[1] for query in (embed, nothing)]

    rounds = [watch.take(measure, pids) for _ in range(args.rounds)]
    overheads = [1e6 * (seconds[0] - seconds[1]) / args.cached for seconds in rounds]
    return markdown_table(["a call whose vector is cached", "microseconds"], [["embed", spread(overheads, 1)]])


class Background:
    """Work of another session, again and again until the block ends, which cancels it."""

    def __init__(self, connection, query, arguments):
        self.connection = connection
        self.work = (query, arguments)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        try:
            while not self.ended.is_set():
                self.connection.execute(*self.work)
        except psycopg.errors.QueryCanceled:
            pass

    def __enter__(self):
        self.thread.start()
        # Until it is under way.
        time.sleep(1)

    def __exit__(self, *_):
        self.ended.set()
        self.connection.cancel()
        self.thread.join()


def measure_latency(args, watch, pids, texts, connections):
    """Milliseconds of a text alone: on an idle server, and beside bulk work."""
    session, other = connections[:2]
    situations = {
        "an idle server": None,
        # All in the database: this process has to be there for what is measured.
        "a backfill of texts": (
            "SELECT cardinality(embed_batch(array_agg(t), %b)) FROM item, generate_series(1, 20)",
            [database.MODEL],
        ),
    }
    if args.captioner:
        pictures = [file.read_bytes() for file in sorted(Path(args.pictures).glob("*.jpg"))][:16]
        options = '{"min_new_tokens": 40, "max_new_tokens": 40, "num_beams": 4}'
        session.execute("SELECT blip_describe(%b, model => %s)", [pictures[0], CAPTIONER])
        situations["descriptions of pictures, 4 beams"] = (
            "SELECT blip_describe_batch(%b, model => %s, options => %s)",
            [pictures * 20, CAPTIONER, options],
        )
    rows = []
    for place, (name, work) in enumerate(situations.items()):
        own = [f"{text} {place}" for text in texts[: args.singles]]

        def measure(own=own, work=work):
            if work is None:
                return embed_each(session, own)
            with Background(other, *work):
                return embed_each(session, own)

        seconds = np.percentile(watch.take(measure, pids), [50, 95, 100])
        rows.append([name, *(f"{1000 * value:.1f}" for value in seconds)])
    return markdown_table(["one text beside", "median ms", "95% ms", "most ms"], rows)


def resize_cache(connection, threads, size):
    """Sets the size of the cache of embeddings; the server's process id."""
    connection.execute(f"ALTER SYSTEM SET pg_sight.embed_cache_size = {size}")
    connection.execute("SELECT pg_reload_conf()")
    time.sleep(1)
    return database.await_server(connection, threads)


def run(args):
    """Measures and reports."""
    texts = glosses.read(args.wordnet)[: args.texts]
    report = Report("The model server under sessions")
    with database.connect() as connection:
        database.start_model_server(connection, args.model, args.threads)
        if args.captioner:
            connection.execute("SELECT sight_model_register(%s, %s)", [CAPTIONER, args.captioner])
        make_table(connection, texts)
        server = resize_cache(connection, args.threads, 0)
        connections = [database.connect() for _ in range(args.sessions)]
        watch = Watch(args.others, args.patience)

        def pids():
            return [server, os.getpid(), *database.processes(connection)]

        singles = texts[: args.sessions * args.each]
        for each in connections:
            embed_each(each, ["warm"])
        if "sessions" in args.measure:
            report.add(measure_sessions(args, watch, pids(), singles, connections))
        if "updates" in args.measure:
            report.add(measure_updates(args, watch, pids(), texts, connection))
        if "latency" in args.measure:
            report.add(measure_latency(args, watch, pids(), texts, connections))
        if "cached" in args.measure:
            server = resize_cache(connection, args.threads, "'32MB'")
            report.add(measure_cached(args, watch, pids(), connection))
        conditions = [
            f"{len(texts):,} WordNet glosses, {args.rounds} rounds; {args.sessions} sessions with "
            f"{args.each} texts each; {args.singles} texts alone beside bulk work",
            f"{args.threads} threads; the cache of embeddings is off except for the calls that are cached",
            database.versions(connection),
        ]
    report.finish(watch, conditions, args.save)


PARTS = ["sessions", "updates", "cached", "latency"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wordnet", required=True, help="folder of WordNet's files data.*")
    parser.add_argument("--speed", required=True, help="crates/models' example `speed`, built")
    parser.add_argument("--model", default=database.default_model(), help="directory of a text encoder")
    parser.add_argument("--captioner", help="directory of a captioner, for latency beside descriptions")
    parser.add_argument("--pictures", help="folder of pictures *.jpg to describe")
    parser.add_argument("--measure", default=PARTS, type=lambda names: names.split(","), help=", ".join(PARTS))
    parser.add_argument("--texts", type=int, default=2000, help="rows to update (default %(default)s)")
    parser.add_argument("--sessions", type=int, default=32, help="default %(default)s")
    parser.add_argument("--each", type=int, default=30, help="texts of each session (default %(default)s)")
    parser.add_argument("--singles", type=int, default=100, help="texts beside bulk work (default %(default)s)")
    parser.add_argument("--cached", type=int, default=5000, help="cached calls (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="of server and raw loop (default %(default)s)")
    add_watch_options(parser)
    parser.add_argument("--save", metavar="FILE", help="write the report into a file too")
    args = parser.parse_args()
    if not args.model:
        parser.error("--model or PG_SIGHT_MINILM must name a model directory")
    if unknown := set(args.measure) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}")
    if args.captioner and not args.pictures:
        parser.error("--captioner needs --pictures")
    return args


if __name__ == "__main__":
    database.main(lambda: run(arguments()), glosses.MissingGlosses)
