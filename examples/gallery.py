"""A search gallery in the browser over a table of pictures that pg_sight describes.

    python gallery.py --table product
    PGHOST=db.example PGDATABASE=shop python gallery.py --description caption --vector caption_vec

Search by words, by a picture of the table ("more like this") or by one of your own; by the vector
alone or together with full text; with filters on the table's other columns. The SQL that ran is
shown, to copy. The connection is that of libpq's variables (PGHOST, PGDATABASE, PGUSER, ...) or of
--dsn; sessions only read. The page asks nothing of other hosts.
"""

import argparse
import os
import signal
import socket
import sys
import tempfile
import threading
import webbrowser
from contextlib import suppress

# Before Gradio is imported, which reports its use and looks for versions otherwise. Uploaded pictures
# are nobody else's, and are gone when the program ends.
UPLOADS = tempfile.TemporaryDirectory(prefix="gallery-")
os.environ["GRADIO_TEMP_DIR"] = UPLOADS.name
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import psycopg  # noqa: E402
import uvicorn  # noqa: E402
from gallery_app import catalog, server  # noqa: E402
from gallery_app.database import Database  # noqa: E402


def options():
    parser = argparse.ArgumentParser(
        description="A search gallery in the browser over a table of pictures.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--dsn", default="", help="connection string of libpq, over its variables")
    parser.add_argument("--table", default="product", help="table, with its schema if need be")
    parser.add_argument("--id", default="id", help="column of the primary key")
    parser.add_argument("--image", default="image", help="column of the pictures")
    parser.add_argument("--description", default="description", help="column of the captions")
    parser.add_argument("--vector", default="desc_vec", help="column of the captions' vectors")
    parser.add_argument(
        "--filter", action="append", metavar="COLUMN",
        help="column to filter by; again for more. Without it all that suit",
    )  # fmt: skip
    parser.add_argument(
        "--text-config", default="english",
        help="text search configuration of hybrid search, where no index names one",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument(
        "--port", type=int, default=7860, help="port to listen at; 0 takes a free one"
    )
    parser.add_argument(
        "--open", action="store_true", help="open the page in the desktop's browser, where there is one"
    )
    parser.add_argument("--timeout", type=int, default=30, help="seconds that a statement may take")
    parser.add_argument(
        "--connections", type=int, default=8, help="connections to PostgreSQL at most"
    )
    parser.add_argument("--title", default="pg_sight gallery", help="title of the page")
    parser.add_argument(
        "--example", action="append", default=[], metavar="TEXT",
        help="a search to offer; again for more",
    )  # fmt: skip
    return parser.parse_args()


def main():
    args = options()
    with psycopg.connect(args.dsn, connect_timeout=10, autocommit=True) as connection:
        found = catalog.read(connection, args)
    # An end like any other: connections are closed, uploads removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    listener = socket.create_server((args.host, args.port))
    host, port = listener.getsockname()[:2]
    with UPLOADS, Database(args.dsn, args.connections, args.timeout) as database:
        app = server.make(found, database, args)
        address = f"http://{host}:{port}"
        print(f"Gallery: {address}", flush=True)
        # Elsewhere a browser for terminals might be found.
        if args.open and ("DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ):
            threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
        with suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    try:
        main()
    except (psycopg.Error, catalog.CatalogError, OSError) as error:
        sys.exit(f"error: {str(error).strip()}")
