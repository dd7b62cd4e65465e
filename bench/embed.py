"""Speed of embed_batch and embed through SQL against sentence-transformers.

Both run the same weights on the CPU with the same number of threads and the
same texts, in turns, in one run. See README.md.
"""

import argparse
import os
from statistics import median

import database
import glosses
import numpy as np
import peers
from measuring import (
    REST,
    Report,
    Watch,
    add_watch_options,
    in_turns,
    markdown_table,
    measure_rounds,
    memory_table,
    ratios,
    spread,
)

OURS = "pg_sight"
PEER = "sentence-transformers"


class Sql(database.Client):
    """pg_sight, from a client of PostgreSQL."""

    def batch(self, texts):
        return database.embed_batch(self.connection, texts)

    def single(self, text):
        query = "SELECT embed(%b, %b)"
        row = self.connection.execute(query, [text, database.MODEL], binary=True, prepare=True)
        return row.fetchone()[0]


def measure_singles(candidates, texts):
    """Seconds of each text alone, by candidate."""
    seconds = {name: [] for name in candidates}

    def embed(candidate, text):
        return candidate.call("single", text)[1]

    for name, duration in in_turns(candidates, texts, embed, REST):
        seconds[name].append(duration)
    return seconds


def batch_table(times, texts):
    """Texts per second of wall time and of processor time."""
    rows = [
        [
            name,
            spread([texts / wall for wall in taken.wall], 1),
            spread([texts / cpu for cpu in taken.cpu], 1),
        ]
        for name, taken in times.items()
    ]
    if PEER in times:
        ours, peer = times[OURS], times[PEER]
        rows.append(
            [
                "**ratio**",
                spread(ratios(peer.wall, ours.wall), 2),
                spread(ratios(peer.cpu, ours.cpu), 2),
            ]
        )
    return markdown_table(["arrays of texts", "texts per second", "texts per CPU second"], rows)


def single_table(seconds):
    """Milliseconds of a single text; the ratio is of the medians."""
    percentiles = {name: np.percentile(taken, [50, 95]) for name, taken in seconds.items()}
    rows = [[name, *(f"{1000 * value:.1f}" for value in pair)] for name, pair in percentiles.items()]
    if PEER in seconds:
        pair = percentiles[OURS] / percentiles[PEER]
        rows.append(["**ratio**", *(f"{value:.2f}" for value in pair)])
    return markdown_table(["one text", "median ms", "95% ms"], rows)


def run(args):
    """Measures and reports."""
    texts = glosses.read(args.wordnet)[: args.texts + args.singles]
    batched, alone = texts[: args.texts], texts[args.texts :]
    arrays = [batched[start : start + args.array] for start in range(0, len(batched), args.array)]
    report = Report("Embedding")
    with database.connect() as connection:
        server = database.start_model_server(connection, args.model, args.threads)
        candidates = {OURS: Sql(connection, server)}
        if not args.without_peer:
            candidates[PEER] = peers.Process(peers.SentenceTransformers, args.model, args.threads)
        for candidate in candidates.values():
            candidate.call("batch", batched[:64])
            candidate.call("single", batched[0])
        watch = Watch(args.others, args.patience)
        pids = [server, os.getpid(), *database.processes(connection)]
        if PEER in candidates:
            pids += candidates[PEER].pids
        times, vectors = measure_rounds(
            watch,
            pids,
            candidates,
            arrays,
            lambda candidate, array: candidate.call("batch", array),
            args.rounds,
            lambda seconds: f"{len(batched) / seconds:.0f} texts/s",
        )
        seconds = watch.take(lambda: measure_singles(candidates, alone), pids)
        memory = memory_table({name: candidate.service for name, candidate in candidates.items()})
        report.add(batch_table(times, len(batched)), single_table(seconds), memory)
        conditions = [
            f"{len(batched):,} WordNet glosses of {median(map(len, batched)):.0f} characters (median) "
            f"in arrays of {args.array}, {args.rounds} rounds; {len(alone)} others one at a time",
            f"{args.threads} threads for each candidate; median and range of the rounds",
            database.versions(connection),
        ]
    if PEER in candidates:
        difference = max(np.abs(a - b).max() for a, b in zip(vectors[OURS], vectors[PEER], strict=True))
        report.add(f"Greatest difference of an element of a vector: {difference:.1e}")
        conditions.append(f"{candidates[PEER].versions}, batches of {peers.BATCH}")
    report.finish(watch, conditions, args.save)


def arguments():
    parser = argparse.ArgumentParser(
        description="Speed of embedding through SQL, libpq's variables name the database."
    )
    parser.add_argument("--wordnet", required=True, help="folder of WordNet's files data.*")
    parser.add_argument(
        "--model",
        default=database.default_model(),
        help="directory of a model of sentence-transformers (default: PG_SIGHT_MINILM)",
    )
    parser.add_argument("--texts", type=int, default=4000, help="texts in a round (default %(default)s)")
    parser.add_argument("--array", type=int, default=1000, help="texts in a call (default %(default)s)")
    parser.add_argument("--singles", type=int, default=300, help="texts embedded alone (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="of each candidate (default %(default)s)")
    parser.add_argument("--without-peer", action="store_true", help="measure pg_sight alone")
    add_watch_options(parser)
    parser.add_argument("--save", metavar="FILE", help="write the report into a file too")
    args = parser.parse_args()
    if not args.model:
        parser.error("--model or PG_SIGHT_MINILM must name a model directory")
    if min(args.texts, args.array, args.singles, args.rounds, args.threads) < 1:
        parser.error("numbers must be positive")
    return args


if __name__ == "__main__":
    database.main(lambda: run(arguments()), glosses.MissingGlosses)
