"""Connections to PostgreSQL, searches with their time, and what to tell people when one fails."""

import re
import time
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg_pool import ConnectionPool, PoolTimeout

# How long a request waits for a connection, and for how long the pool tries anew to make one. The
# pool's pauses grow: were they longer, PostgreSQL would be back before the pool notices.
WAIT_S = 5
RECONNECT_S = 2


@dataclass(frozen=True)
class Answer:
    """Rows of a statement, the SQL that ran, its time, its plan, and the indexes in that."""

    rows: list
    statement: str
    milliseconds: float
    plan: str = ""
    indexes: tuple = ()


@dataclass(eq=False)
class Problem(Exception):
    """An error for people: what happened, why, what can be done, and its SQLSTATE."""

    message: str
    detail: str = ""
    hint: str = ""
    code: str = ""


class Database:
    """A pool of connections that only read, with a time limit for each statement."""

    def __init__(self, conninfo, connections, timeout_s):
        self._conninfo = conninfo
        self._timeout_s = timeout_s
        self._pool = ConnectionPool(
            conninfo,
            min_size=1,
            max_size=connections,
            kwargs={"autocommit": True, "application_name": "pg_sight gallery"},
            configure=self._configure,
            # One that PostgreSQL has closed meanwhile is replaced before it is used.
            check=ConnectionPool.check_connection,
            timeout=WAIT_S,
            reconnect_timeout=RECONNECT_S,
            open=True,
        )

    def _configure(self, connection):
        for name, value in [
            ("statement_timeout", f"{self._timeout_s}s"),
            ("default_transaction_read_only", "on"),
        ]:
            connection.execute("SELECT set_config(%s, %s, false)", [name, value])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._pool.close()

    def fetch(self, statement, parameters=None):
        """All rows of a statement; raises `Problem`."""
        # In binary: pictures as text would be twice as large.
        return self._with_connection(
            lambda connection: connection.execute(statement, parameters, binary=True).fetchall()
        )

    def search(self, statement, order):
        """Runs a composed statement and explains it; raises `Problem`.

        `order` is the value of `faiss_ivf.iterative_scan` for it; the answer's statement sets it
        where it is not the default.
        """

        def run(connection):
            text = statement.as_string(connection)
            setting = f"SET faiss_ivf.iterative_scan = {order}"
            connection.execute(setting)
            started = time.perf_counter()
            rows = connection.execute(text).fetchall()
            milliseconds = 1000 * (time.perf_counter() - started)
            explain = sql.SQL("EXPLAIN (COSTS OFF) {}").format(statement)
            plan = "\n".join(line for (line,) in connection.execute(explain).fetchall())
            indexes = dict.fromkeys(
                re.findall(r"Index (?:Only )?Scan (?:Backward )?(?:using|on) (\S+)", plan)
            )
            shown = f"{text};" if order == "strict_order" else f"{setting};\n{text};"
            return Answer(rows, shown, milliseconds, plan, tuple(indexes))

        return self._with_connection(run)

    def describe(self, image):
        """The description that `blip_describe` gives a picture, and its time; raises `Problem`."""
        started = time.perf_counter()
        ((text,),) = self.fetch("SELECT blip_describe(%b)", [image])
        return text, 1000 * (time.perf_counter() - started)

    def _with_connection(self, use):
        try:
            with self._pool.connection() as connection:
                return use(connection)
        except PoolTimeout:
            raise self._out_of_reach() from None
        except psycopg.errors.QueryCanceled as error:
            if "statement timeout" not in str(error):
                raise problem(error) from error
            raise Problem(
                f"The search took longer than {self._timeout_s} s and was ended.",
                hint="The first search after a while waits for the model to be loaded: try again.",
                code=error.sqlstate,
            ) from error
        except psycopg.Error as error:
            raise problem(error) from error

    def _out_of_reach(self):
        """Why there is no connection: the pool does not say, an attempt of our own does."""
        try:
            psycopg.connect(self._conninfo, connect_timeout=int(WAIT_S)).close()
        except psycopg.Error as error:
            return Problem("PostgreSQL cannot be reached.", str(error).strip())
        return Problem("All connections to PostgreSQL are busy.", hint="Try again in a moment.")


def problem(error):
    """A `Problem` with what PostgreSQL says, or psycopg where PostgreSQL says nothing."""
    diagnostic = error.diag
    if not diagnostic.message_primary:
        if isinstance(error, psycopg.OperationalError):
            return Problem("The connection to PostgreSQL was lost.", str(error).strip())
        return Problem(str(error).strip())
    return Problem(
        diagnostic.message_primary,
        diagnostic.message_detail or "",
        diagnostic.message_hint or "",
        error.sqlstate or "",
    )
