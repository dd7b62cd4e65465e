"""A private PostgreSQL cluster for the examples' tests, with the extension and the demo's models.

    from cluster import DatabaseTest

    class MyTest(DatabaseTest):         # a database of its own for each class
        def test_something(self):
            with self.connect() as connection:
                connection.execute("SELECT embed('red sneakers')")
            run("load.py", "--dsn", self.dsn, ...)   # a connection string of libpq

One cluster serves all tests of a process: it is started when it is first asked for
(`Cluster.shared()`), listens on a Unix socket only, and is removed when the process ends.
`Cluster.shared().database(name)` makes a database and returns its connection string.

It takes the PostgreSQL of PG_CONFIG, which must have pgvector and pg_sight, the encoder of
PG_SIGHT_MINILM and the captioner of this checkout. Run as root, PostgreSQL runs as the user
PG_SIGHT_TEST_USER, by default postgres.
"""

import atexit
import os
import pwd
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

REPO = Path(__file__).resolve().parents[2]
CAPTIONER = "demo-captioner"
ENCODER = "all-MiniLM-L6-v2"
# What ENCODER makes.
DIMENSIONS = 384
SUPERUSER = "postgres"


class Cluster:
    """A cluster that runs; `stop` ends and removes it."""

    _shared = None

    @classmethod
    def shared(cls):
        """The one cluster of this process."""
        if cls._shared is None:
            cls._shared = cls()
            atexit.register(cls._shared.stop)
        return cls._shared

    def __init__(self):
        # A socket's path is limited to 107 bytes: not below a long TMPDIR.
        self.folder = Path(tempfile.mkdtemp(prefix="sight", dir="/tmp"))
        self.data = self.folder / "data"
        try:
            self.bin = Path(output(os.environ["PG_CONFIG"], "--bindir"))
            self._owner = owner_options(self.folder)
            self._create()
            self._models = {
                CAPTIONER: self.copy_model(REPO / "demo" / "captioner", CAPTIONER),
                ENCODER: self.copy_model(Path(os.environ["PG_SIGHT_MINILM"]), ENCODER),
            }
        except BaseException:
            self.stop()
            raise

    def _create(self):
        self._run("initdb", "--no-sync", "-A", "trust", "-U", SUPERUSER, "-E", "UTF8",
                  "--locale=C.UTF-8", "-D", self.data)  # fmt: skip
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(f"listen_addresses = ''\nunix_socket_directories = '{self.folder}'\n")
        self._run("pg_ctl", "start", "-w", "-s", "-t", "60", "-D", self.data,
                  "-l", self.folder / "log")  # fmt: skip

    def _run(self, program, *arguments):
        # Into a file, not a pipe: the postmaster would keep that open for ever.
        with tempfile.TemporaryFile() as said:
            done = subprocess.run(
                [self.bin / program, *arguments], cwd=self.folder, env={"LC_ALL": "C"},
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, **self._owner,
            )  # fmt: skip
            if done.returncode != 0:
                said.seek(0)
                text = said.read().decode(errors="replace")
                raise RuntimeError(f"{program}: {text}\n{self.log()}")

    def copy_model(self, source, name):
        """Copies a model's folder to where the server's user can read it; returns the copy."""
        target = self.folder / name
        shutil.copytree(source, target, copy_function=shutil.copyfile)
        for path in [target, *target.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        return target

    def database(self, name):
        """Creates a database with the extension and both models; returns its connection string."""
        dsn = self.dsn(name)
        create = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            connection.execute(create)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION pg_sight CASCADE")
            for model, folder in self._models.items():
                connection.execute("SELECT sight_model_register(%s, %s)", [model, str(folder)])
            for setting, model in [("describe_model", CAPTIONER), ("embed_model", ENCODER)]:
                connection.execute(
                    sql.SQL("ALTER DATABASE {} SET {} = {}").format(
                        sql.Identifier(name), sql.Identifier("pg_sight", setting), model
                    )
                )
        return dsn

    def dsn(self, database):
        """Connection string of a database, as the superuser."""
        return make_conninfo(host=str(self.folder), user=SUPERUSER, dbname=database)

    def log(self):
        """What PostgreSQL has logged."""
        file = self.folder / "log"
        return file.read_text(errors="replace") if file.exists() else ""

    def stop(self):
        """Stops PostgreSQL, if it runs, and removes the cluster's folder."""
        if (self.data / "postmaster.pid").exists():
            self._run("pg_ctl", "stop", "-s", "-m", "immediate", "-D", self.data)
        shutil.rmtree(self.folder)


class DatabaseTest(unittest.TestCase):
    """A test class with a database of its own: `dsn`, `connect()`."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.cluster = Cluster.shared()
        cls.dsn = cls.cluster.database(f"{cls.__module__}_{cls.__name__}".lower())

    @classmethod
    def connect(cls, **options):
        """A connection of psycopg to the class's database, in autocommit mode."""
        return psycopg.connect(cls.dsn, **{"autocommit": True, **options})

    def query(self, statement, parameters=None):
        """All rows of a statement's result."""
        with self.connect() as connection:
            return connection.execute(statement, parameters).fetchall()


def output(*command):
    """What a program prints, without the last line's end."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def owner_options(folder):
    """Options for `subprocess` that run PostgreSQL's programs as a user who is not root."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam(os.environ.get("PG_SIGHT_TEST_USER", "postgres"))
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
