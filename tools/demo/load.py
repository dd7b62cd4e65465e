"""Loads pictures into the demo's table, where a trigger describes and embeds them.

    python load.py --host /socket/folder --dbname demo pictures

Several connections insert at the same time, as the clients of a shop would:
the model server makes batches of what arrives together.
"""

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import psycopg
from progress import progress

INSERT = """
    INSERT INTO product (image, category, colour, price)
    SELECT image, category, colour, price
    FROM unnest(%b::bytea[], %t::text[], %t::text[], %t::numeric[])
        WITH ORDINALITY AS pictures (image, category, colour, price, place)
    ORDER BY place
    RETURNING id, description
"""


def load(connect, files, catalogue):
    """Inserts the files in one statement; returns (id, description) for each, in order."""
    with connect() as connection:
        images = [file.read_bytes() for file in files]
        entries = [catalogue[file.stem] for file in files]
        known = [[entry[name] for entry in entries] for name in ("category", "colour", "price")]
        return connection.execute(INSERT, [images, *known], binary=True).fetchall()


def main():
    parser = argparse.ArgumentParser(description="Load pictures into the table product.")
    parser.add_argument("--host", required=True, help="folder of the server's socket")
    parser.add_argument("--dbname", required=True)
    parser.add_argument("--user", default="postgres")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--per-statement", type=int, default=5)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()

    truth = json.loads((args.folder / "captions.json").read_text())
    catalogue = json.loads((args.folder / "catalogue.json").read_text())
    files = [args.folder / f"{seed}.jpg" for seed in truth]
    chunks = [files[i : i + args.per_statement] for i in range(0, len(files), args.per_statement)]
    right = insert_all(args, chunks, truth, catalogue)
    print(f"  {right} of {len(files)} descriptions say exactly what was drawn")


def insert_all(args, chunks, truth, catalogue):
    """Inserts the chunks and counts the descriptions that equal the true captions."""

    def connect():
        return psycopg.connect(
            host=args.host, dbname=args.dbname, user=args.user, autocommit=True
        )

    total = sum(map(len, chunks))
    right = 0
    with (
        ThreadPoolExecutor(args.connections) as pool,
        progress(None, "Describe and embed in SQL", total) as bar,
    ):
        pending = {pool.submit(load, connect, chunk, catalogue): chunk for chunk in chunks}
        try:
            for done in as_completed(pending):
                chunk = pending[done]
                for file, (_, description) in zip(chunk, done.result(), strict=True):
                    right += matches(description, truth[file.stem])
                bar.update(len(chunk))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return right


def matches(description, caption):
    """Whether they are the same but for the tokenizer's spaces around hyphens ("t - shirt")."""
    return (description or "").replace(" - ", "-") == caption


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except psycopg.Error as error:
        sys.exit(f"error: {str(error).strip()}")
