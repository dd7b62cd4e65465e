"""Speed of blip_describe and blip_describe_batch through SQL against BLIP in transformers.

Both run the same weights on the CPU with the same number of threads and the
same pictures, in turns, in one run. See README.md.
"""

import argparse
import json
import os
from pathlib import Path

import database
import peers
from measuring import (
    Report,
    Watch,
    add_watch_options,
    markdown_table,
    measure_rounds,
    memory_table,
    ratios,
    spread,
)

OURS = "pg_sight"
PEER = "transformers"


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


def rows_of(title, times, pictures):
    """Rows of the table: seconds of wall time and of processor time for a picture."""
    rows = [
        [
            f"{title}: {name}",
            spread([wall / pictures for wall in taken.wall], 3),
            spread([cpu / pictures for cpu in taken.cpu], 3),
        ]
        for name, taken in times.items()
    ]
    if PEER in times:
        ours, peer = times[OURS], times[PEER]
        wall, cpu = ratios(peer.wall, ours.wall), ratios(peer.cpu, ours.cpu)
        rows.append([f"{title}: **ratio**", spread(wall, 2), spread(cpu, 2)])
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
                times, captions = measure_rounds(
                    watch,
                    pids,
                    candidates,
                    batches,
                    lambda candidate, batch, options=options: candidate.call("captions", batch, options),
                    args.rounds,
                    lambda seconds: f"{seconds / len(pictures):.2f} s a picture",
                )
                kind = "one at a time" if size == 1 else f"arrays of {size}"
                search = f"{beams} beams" if beams > 1 else "greedy"
                rows += rows_of(f"{kind}, {search}", times, len(pictures))
                if PEER in candidates:
                    ours, theirs = sum(captions[OURS], []), sum(captions[PEER], [])
                    compared += len(pictures)
                    same += sum(map(str.__eq__, ours, theirs))
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
    database.main(lambda: run(arguments()))
