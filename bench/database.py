"""Connections to the benchmark's cluster, with pgvector's type in binary."""

import os
import struct
import sys
from pathlib import Path

import numpy as np
import psycopg
from measuring import clock
from psycopg.adapt import Dumper, Loader
from psycopg.pq import Format
from psycopg.types import TypeInfo

# A vector in binary: dimensions and an unused field, both 16 bits, then the
# elements, all big-endian.
HEADER = struct.Struct(">HH")
ELEMENT = np.dtype(">f4")

MODEL = "bench"


class VectorDumper(Dumper):
    """Sends a one-dimensional array."""

    format = Format.BINARY

    def dump(self, obj):
        return HEADER.pack(len(obj), 0) + obj.astype(ELEMENT).tobytes()


class VectorLoader(Loader):
    """Receives a vector as a float32 array."""

    format = Format.BINARY

    def load(self, data):
        return np.frombuffer(bytes(data), ELEMENT, offset=HEADER.size).astype(np.float32)


def connect(settings=None):
    """An autocommit connection to the database that libpq's variables (PGHOST, ...) name.

    The extensions are created in it if they are not there. `settings` are set
    for this connection.
    """
    options = " ".join(f"-c {name}={value}" for name, value in (settings or {}).items())
    connection = psycopg.connect(autocommit=True, options=options)
    connection.execute("SET client_min_messages = warning")
    connection.execute("CREATE EXTENSION IF NOT EXISTS pg_sight CASCADE")
    info = TypeInfo.fetch(connection, "vector")
    info.register(connection)
    dumper = type("RegisteredVectorDumper", (VectorDumper,), {"oid": info.oid})
    connection.adapters.register_dumper(np.ndarray, dumper)
    connection.adapters.register_loader(info.oid, VectorLoader)
    return connection


def processes(connection):
    """Process ids of the cluster's backends and helpers."""
    # IO workers come and go.
    query = "SELECT pid FROM pg_stat_activity WHERE backend_type <> 'io worker'"
    return [pid for (pid,) in connection.execute(query)]


def start_model_server(connection, model, threads):
    """Registers the model directory as MODEL; the server runs it on the CPU with so many threads.

    Returns the server's process id. All settings of the cluster are changed,
    which is why this is for a cluster of the benchmark's own.
    """
    connection.execute("SELECT sight_model_register(%s, %s)", [MODEL, str(Path(model).resolve())])
    connection.execute(f"ALTER SYSTEM SET pg_sight.threads = {threads:d}")
    connection.execute("ALTER SYSTEM SET pg_sight.device = cpu")
    connection.execute("SELECT pg_reload_conf()")
    return await_server(connection, threads)


def await_server(connection, threads):
    """Process id of the server once it runs with these threads: a reload restarts it."""
    for _ in range(100):
        connection.execute("SELECT pg_sleep(0.1)")
        try:
            connection.execute("SELECT sight_model_load(%s)", [MODEL])
        except psycopg.OperationalError:
            if connection.closed:
                raise
            continue
        status = connection.execute("SELECT pid, threads FROM sight_server_status").fetchone()
        if status[1] == threads:
            return status[0]
    raise TimeoutError(f"the model server does not come up with {threads} threads")


class Client:
    """pg_sight from a client of PostgreSQL, as a candidate; methods are called by name."""

    def __init__(self, connection, server):
        self.connection = connection
        # Those whose memory counts: the client is the benchmark itself.
        self.service = [server, connection.info.backend_pid]
        self.pids = [*self.service, os.getpid()]

    def call(self, method, *args):
        """Result of a method, and the seconds it took."""
        return clock(lambda: getattr(self, method)(*args))


def embed_batch(connection, texts):
    """Embeddings of the texts through SQL, float32 of shape (texts, dimensions)."""
    query = "SELECT embed_batch(%b, %b)"
    return np.stack(connection.execute(query, [texts, MODEL], binary=True).fetchone()[0])


def versions(connection):
    """PostgreSQL's and the extensions' versions, in words."""
    query = "SELECT extname || ' ' || extversion FROM pg_extension WHERE extname = ANY (%s) ORDER BY 1"
    extensions = [name for (name,) in connection.execute(query, [["vector", "pg_sight"]])]
    server = connection.info.parameter_status("server_version")
    return ", ".join([f"PostgreSQL {server}", *extensions])


def default_model():
    """Directory of the text encoder that the set-up downloaded."""
    return os.environ.get("PG_SIGHT_MINILM")


def main(work, *errors):
    """Runs a benchmark. Of what may go wrong around it, and the `errors` of its own, one line tells."""
    try:
        work()
    except KeyboardInterrupt:
        sys.exit(130)
    except psycopg.Error as error:
        sys.exit(f"error: {error.diag.message_primary or str(error).strip()}")
    except (OSError, RuntimeError, *errors) as error:
        sys.exit(f"error: {str(error).strip()}")
