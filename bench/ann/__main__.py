"""The vector index benchmark: speed, size, building and writing at equal recall. See ../README.md."""

import argparse
import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

import corpus
import data as vectors
import database
import glosses
import measure
import methods
import report
from measuring import add_watch_options
from results import Results
from truth import NEIGHBOURS

GLOSSES, SYNTHETIC = "glosses", "synthetic"


def read_data(args):
    """What the options say to index."""
    if args.data == GLOSSES:
        count = None if args.rows is None else args.rows + args.queries
        with database.connect() as connection:
            embedded = corpus.embedded_glosses(
                connection, args.wordnet, args.model, args.threads, args.cache, count
            )
        rows, queries = vectors.split(embedded, args.queries)
        return vectors.Data(GLOSSES, "WordNet glosses, embedded", rows, queries, "ip")
    if args.data == SYNTHETIC:
        mixture = vectors.Mixture((args.rows or 1_000_000) + args.queries, seed=args.seed)
        return vectors.synthetic(mixture, args.queries, args.cache)
    return vectors.from_file(args.data, args.queries, args.rows, args.metric)


def name_of(args):
    """What files of results are called after."""
    return args.name or (args.data if args.data in (GLOSSES, SYNTHETIC) else Path(args.data).stem)


def run(args):
    chosen, peers = methods.choose(
        args.methods, args.factory, args.method, "search" in args.measure and args.faiss
    )
    results = Results(args.results, name_of(args))
    if not args.report_only:
        data = read_data(args)
        data.name = name_of(args)
        measure.Bench(args, data, chosen, peers, results).run()
    report.write(results, args.results, name_of(args))


def count_of(text):
    """A number of rows, or None for all."""
    return None if text == "all" else int(text)


def words_of(known):
    """A parser of lists of words that must be among the known ones."""

    def parse(text):
        words = [word for word in text.split(",") if word]
        unknown = set(words) - set(known)
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: known are {', '.join(known)}")
        return words

    return parse


def arguments():
    parser = argparse.ArgumentParser(
        prog="ann", description="Index access methods on vectors; libpq's variables name the database."
    )
    add = parser.add_argument
    add(
        "--data",
        default=GLOSSES,
        help=f'"{GLOSSES}" (default), "{SYNTHETIC}", or a .hdf5, .fvecs or .npy file',
    )
    add("--name", help="what the files of results are called after (default: the data's name)")
    add("--metric", choices=methods.OPERATORS, default="l2", help="of .fvecs and .npy (default %(default)s)")
    add("--rows", type=count_of, help='number, or "all" (default)')
    add("--queries", type=int, default=1000, help="rows that are held out (default %(default)s)")
    add("--seed", type=int, default=vectors.SEED, help="of synthetic data (default %(default)s)")
    add(
        "--methods",
        type=words_of(methods.STANDARD),
        default=list(methods.STANDARD),
        metavar="LIST",
        help=f"some of {','.join(methods.STANDARD)} (default: all)",
    )
    add("--factory", action="append", default=[], help="faiss_ivf with this option factory too; repeatable")
    add(
        "--method",
        action="append",
        default=[],
        metavar="KEY=VALUE,...",
        help=f"another access method too, with the keys {', '.join(methods.KEYS)}; repeatable",
    )
    add("--without-faiss", dest="faiss", action="store_false", help="leave out FAISS in this process")
    add(
        "--measure",
        type=words_of(measure.PHASES),
        default=list(measure.PHASES),
        metavar="LIST",
        help=f"some of {','.join(measure.PHASES)} (default: all)",
    )
    add("--lists", type=int, help="of each index (default: square root of the rows)")
    add("--build-memory", default="1GB", help="maintenance_work_mem (default %(default)s)")
    add("--builds", type=int, default=1, help="of each index and number of workers (default %(default)s)")
    add(
        "--workers",
        type=lambda text: [int(number) for number in text.split(",")],
        choices=[[1], [2], [1, 2]],
        default=[1, 2],
        metavar="1|2|1,2",
        help="numbers of processes that build an index (default 1,2)",
    )
    add(
        "--rounds",
        type=int,
        default=3,
        help="of all queries at each recall, and of inserts (default %(default)s)",
    )
    add("--inserts", type=int, default=5000, help="rows (default %(default)s)")
    add(
        "--one-table",
        action="store_true",
        help="one table and one index at a time, as with more than 2 GiB of vectors",
    )
    add("--restart", metavar="COMMAND", help="restarts the server; without it there is no cold start")
    add("--wordnet", help="folder of WordNet's files data.*")
    add("--model", default=database.default_model(), help="encoder of the glosses (default: PG_SIGHT_MINILM)")
    add("--threads", type=int, default=2, help="that embed the glosses (default %(default)s)")
    add("--cache", type=Path, default=".", help="folder of vectors and their neighbours (default: this one)")
    add("--results", type=Path, help="folder where results accumulate (default: the cache's ann)")
    add("--report-only", action="store_true", help="write table and plots from the results that are there")
    add_watch_options(parser)
    args = parser.parse_args()
    args.results = args.results or args.cache / "ann"
    if args.data == GLOSSES and not args.report_only and not (args.wordnet and args.model):
        parser.error("--wordnet and --model (or PG_SIGHT_MINILM) must say where the glosses come from")
    if (
        min(args.queries, args.builds, args.rounds, args.inserts) < 1
        or (args.rows or NEIGHBOURS) < NEIGHBOURS
    ):
        parser.error(f"numbers must be positive, and rows at least {NEIGHBOURS}")
    return args


if __name__ == "__main__":
    database.main(lambda: run(arguments()), glosses.MissingGlosses, vectors.BadData, methods.BadMethod)
