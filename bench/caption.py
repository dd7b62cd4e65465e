"""Speed of blip_describe and blip_describe_batch through SQL against BLIP in transformers.

Both run the same weights on the CPU with the same number of threads and the
same pictures, in turns, in one run. See README.md.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import database
import numpy as np
import peers
import psycopg
from measuring import (
    Report,
    Watch,
    add_watch_options,
    in_turns,
    markdown_table,
    memory_table,
    ratios,
    spread,
    timed,
)

OURS = "pg_sight"
PEER = "transformers"
# Seconds; OpenMP's threads spin for a few milliseconds after their last work.
REST = 0.02


class Sql(database.Client):
    """pg_sight, from a client of PostgreSQL."""

    def captions(self, pictures, options):
        options = json.dumps(options)
        if len(pictures) == 1:
            query = "SELECT ARRAY[blip_describe(%b, model => %s, options => %s)]"
            arguments = [pictures[0], database.MODEL, options]
        else:
            query = "SELECT blip_describe_batch(%b, model => %s, options => %s)"
            arguments = [pictures, database.MODEL, options]
        return self.connection.execute(query, arguments).fetchone()[0]


def measure_round(candidates, batches, options):
    """Describes all batches once; returns (wall, cpu) seconds and the captions by candidate."""
    captions = {name: [] for name in candidates}
    sums = {name: np.zeros(2) for name in candidates}

    def describe(candidate, pictures):
        return timed(lambda: candidate.call("captions", pictures, options), candidate.pids)

    for name, (texts, wall, cpu) in in_turns(candidates, batches, describe, REST):
        captions[name] += texts
        sums[name] += wall, cpu
    return sums, captions


def measure(watch, pids, candidates, batches, options, rounds):
    """Takes the rounds; returns seconds (wall, cpu) of each by candidate, and the last captions."""
    seconds = {name: [] for name in candidates}
    for place in range(rounds):
        # Who comes first changes from round to round too.
        turned = dict(reversed(candidates.items())) if place % 2 else candidates
        sums, captions = watch.take(
            lambda turned=turned: measure_round(turned, batches, options), pids
        )
        for name, taken in sums.items():
            seconds[name].append(taken)
        rates = ", ".join(f"{name} {sums[name][0]:.2f} s" for name in candidates)
        print(f"  round {place + 1} of {rounds}, {options}: {rates}", file=sys.stderr)
    return seconds, captions


def rows_of(title, seconds, pictures):
    """Rows of the table: seconds of wall time and of processor time for a picture."""
    rows = [
        [
            f"{title}: {name}",
            spread([wall / pictures for wall, _ in taken], 3),
            spread([cpu / pictures for _, cpu in taken], 3),
        ]
        for name, taken in seconds.items()
    ]
    if PEER in seconds:
        walls, cpus = (
            ratios([pair[part] for pair in seconds[PEER]], [pair[part] for pair in seconds[OURS]])
            for part in (0, 1)
        )
        rows.append([f"{title}: **ratio**", spread(walls, 2), spread(cpus, 2)])
    return rows


def run(args):
    """Measures and reports."""
    pictures = [file.read_bytes() for file in sorted(Path(args.pictures).glob("*.jpg"))]
    pictures = pictures[: args.count]
    if len(pictures) < args.count:
        raise FileNotFoundError(f"{args.pictures} has fewer than {args.count} pictures *.jpg")
    report = Report("Captioning")
    with database.connect() as connection:
        server = database.start_model_server(connection, args.model, args.threads)
        candidates = {OURS: Sql(connection, server)}
        if not args.without_peer:
            candidates[PEER] = peers.Process(peers.Transformers, args.model, args.threads)
        watch = Watch(args.others, args.patience)
        pids = [server, os.getpid(), *database.processes(connection)]
        if PEER in candidates:
            pids += candidates[PEER].pids
        rows, same, compared = [], 0, 0
        for beams in args.beams:
            # All captions of the same length, whatever the model would like.
            options = {
                "num_beams": beams,
                "do_sample": False,
                "min_new_tokens": args.tokens,
                "max_new_tokens": args.tokens,
            }
            for candidate in candidates.values():
                candidate.call("captions", pictures[:1], options)
            for size in sorted({1, args.array}):
                batches = [pictures[at : at + size] for at in range(0, len(pictures), size)]
                seconds, captions = measure(
                    watch, pids, candidates, batches, options, args.rounds
                )
                how = "one at a time" if size == 1 else f"arrays of {size}"
                rows += rows_of(f"{how}, {beams} beams" if beams > 1 else f"{how}, greedy", seconds, len(pictures))
                if PEER in candidates:
                    compared += len(pictures)
                    same += sum(map(str.__eq__, captions[OURS], captions[PEER]))
        report.add(markdown_table(["", "seconds a picture", "CPU seconds a picture"], rows))
        report.add(memory_table({name: candidate.service for name, candidate in candidates.items()}))
        conditions = [
            f"{len(pictures)} drawn pictures as JPEG, {args.tokens} new tokens each, {args.rounds} rounds, "
            f"model {Path(args.model).name}",
            f"{args.threads} threads for each candidate; median and range of the rounds",
            database.versions(connection),
        ]
    if PEER in candidates:
        report.add(f"Equal captions: {same} of {compared}")
        conditions.append(candidates[PEER].versions)
    report.finish(watch, conditions, args.save)


def arguments():
    parser = argparse.ArgumentParser(
        description="Speed of captioning through SQL, libpq's variables name the database."
    )
    parser.add_argument("--model", required=True, help="directory of a BLIP captioner")
    parser.add_argument("--pictures", required=True, help="folder of JPEG files")
    parser.add_argument("--count", type=int, default=4, help="pictures in a round (default %(default)s)")
    parser.add_argument("--array", type=int, default=4, help="pictures in a call of the second kind (default %(default)s)")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 10], help="default 1 10")
    parser.add_argument("--tokens", type=int, default=20, help="new tokens of a caption (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="of each candidate (default %(default)s)")
    parser.add_argument("--without-peer", action="store_true", help="measure pg_sight alone")
    add_watch_options(parser)
    parser.add_argument("--save", metavar="FILE", help="write the report into a file too")
    args = parser.parse_args()
    if min(args.count, args.array, *args.beams, args.tokens, args.rounds, args.threads) < 1:
        parser.error("numbers must be positive")
    return args


if __name__ == "__main__":
    try:
        run(arguments())
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, psycopg.Error, RuntimeError, TimeoutError) as error:
        sys.exit(f"error: {str(error).strip()}")
