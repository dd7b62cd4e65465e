"""The table that pictures go into, and how they get there: binary COPY, each content once."""

from dataclasses import dataclass
from typing import NamedTuple

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from .check import Limits

# What the loader writes; the rest of a table is its owner's.
COLUMNS = {
    "sha256": "bytea",
    "source": "text",
    "name": "text",
    "etag": "text",
    "labels": "jsonb",
    "image": "bytea",
}

CREATE = """
    CREATE TABLE {table} (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        sha256 bytea NOT NULL UNIQUE,
        source text NOT NULL,
        name text NOT NULL,
        etag text,
        labels jsonb NOT NULL DEFAULT '{{}}',
        image bytea NOT NULL,
        description text,
        desc_vec vector({dimensions})
    )
"""
# Pictures are compressed by themselves.
STORAGE = "ALTER TABLE {table} ALTER image SET STORAGE EXTERNAL"
TRIGGER = """
    CREATE OR REPLACE TRIGGER describe BEFORE INSERT OR UPDATE OF image, description ON {table}
    FOR EACH ROW EXECUTE FUNCTION sight_describe_trigger('image', 'description', 'desc_vec')
"""
INSERT = """
    INSERT INTO {table} (sha256, source, name, etag, labels, image)
    SELECT sha256, source, name, etag, labels, image FROM pg_temp.staged
    WHERE {condition} ORDER BY place
    ON CONFLICT (sha256) DO NOTHING
"""
# Rows that are not new: the same picture of the same source, or another with the same content.
THERE = """
    SELECT count(*) FROM pg_temp.staged s JOIN {table} t USING (sha256, source, name)
"""

# Of a trigger that describes: not a picture, or one too large.
REFUSED = ("PS020", "PS021")


class TableError(Exception):
    """The table or the database is not as it must be; the message is for the user."""


@dataclass(frozen=True)
class Picture:
    """A row to be."""

    sha256: bytes
    source: str
    name: str
    etag: str | None
    labels: dict
    image: bytes


class Added(NamedTuple):
    """How many pictures were new, how many there; names that the database refused, and why."""

    new: int
    there: int
    refused: list


class Table:
    """The table of a connection, which must be in autocommit mode."""

    def __init__(self, connection, name):
        """`name` may have a schema before it, with a dot."""
        self.connection = connection
        self.name = name
        self.identifier = sql.Identifier(*name.split("."))

    def prepare(self, dimensions=None, trigger=False):
        """Creates the table where it is not there, and the one that batches go through.

        `dimensions` are those of the vectors; without them those of the model of `embed`.
        """
        if not self._exists():
            self._create(dimensions or self._model_dimensions())
        self._check_columns()
        if trigger:
            self._execute(TRIGGER)
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        self._execute(
            f"CREATE TEMPORARY TABLE staged (place integer, {columns}) ON COMMIT DELETE ROWS"
        )
        self._execute("ALTER TABLE pg_temp.staged ALTER image SET STORAGE EXTERNAL")

    def _execute(self, statement, parameters=None, **parts):
        composed = sql.SQL(statement).format(table=self.identifier, **parts)
        return self.connection.execute(composed, parameters)

    def _exists(self):
        found = "SELECT to_regclass(%s) IS NOT NULL"
        return self.connection.execute(found, [self.identifier.as_string()]).fetchone()[0]

    def _model_dimensions(self):
        if self._value("SELECT to_regprocedure('embed(text, text, text)') IS NULL"):
            raise TableError(
                "the database has no pg_sight on its search path: CREATE EXTENSION pg_sight CASCADE"
            )
        # Looking at the models makes the settings known to the session, too.
        self._value("SELECT count(*) FROM sight_models")
        model = self._value("SELECT current_setting('pg_sight.embed_model')")
        row = self.connection.execute(
            "SELECT dimensions FROM sight_models WHERE name = %s AND dimensions IS NOT NULL",
            [model],
        ).fetchone()
        if row is None:
            raise TableError(
                f"the model of pg_sight.embed_model, {model}, is not registered, so the size of its"
                " vectors is unknown: register it, or say --dimensions"
            )
        return row[0]

    def _value(self, statement):
        return self.connection.execute(statement).fetchone()[0]

    def _create(self, dimensions):
        with self.connection.transaction():
            self._execute(CREATE, dimensions=sql.Literal(dimensions))
            self._execute(STORAGE)
            self._execute("CREATE INDEX ON {table} (source, name)")

    def _check_columns(self):
        rows = self.connection.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0",
            [self.identifier.as_string()],
        ).fetchall()
        missing = COLUMNS.keys() - {name for (name,) in rows}
        if missing:
            table = self.identifier.as_string()
            adding = [
                f"ADD {name} {kind}{' UNIQUE' if name == 'sha256' else ''}"
                for name, kind in COLUMNS.items()
                if name in missing
            ]
            raise TableError(
                f"table {self.name} lacks columns: ALTER TABLE {table} {', '.join(adding)}"
            )

    def limits(self):
        """What the database takes as a picture."""
        self._value("SELECT count(*) FROM sight_models")
        size = self._value("SELECT pg_size_bytes(current_setting('pg_sight.max_image_size'))")
        pixels = self._value("SELECT current_setting('pg_sight.max_image_pixels')::bigint")
        return Limits(size, pixels)

    def known(self, source, candidates):
        """Names of those candidates that are there with the same etag."""
        names = [candidate.name for candidate in candidates]
        etags = [candidate.etag for candidate in candidates]
        rows = self._execute(
            """
            SELECT t.name FROM {table} t JOIN unnest(%s::text[], %s::text[]) AS c (name, etag)
            USING (name, etag) WHERE t.source = %s
            """,
            [names, etags, source],
        )
        return {name for (name,) in rows}

    def add(self, pictures):
        """Adds pictures in one transaction, in their order, but those whose content is there."""
        with self.connection.transaction():
            self._stage(pictures)
            new, refused = self._insert(pictures)
            there = self._execute(THERE).fetchone()[0] - new
        return Added(new, there, refused)

    def _stage(self, pictures):
        columns = ["place", *COLUMNS]
        statement = sql.SQL("COPY pg_temp.staged ({}) FROM STDIN (FORMAT binary)").format(
            sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        with self.connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(["integer", *COLUMNS.values()])
            for place, picture in enumerate(pictures):
                values = [getattr(picture, name) for name in COLUMNS]
                values[list(COLUMNS).index("labels")] = Jsonb(storable(picture.labels))
                copy.write_row([place, *map(without_nul, values)])

    def _insert(self, pictures):
        try:
            with self.connection.transaction():
                return self._execute(INSERT, condition=sql.SQL("true")).rowcount, []
        except psycopg.Error as error:
            if error.sqlstate not in REFUSED:
                raise
        # A trigger refused one of them, and so all: one by one tells which.
        new, refused = 0, []
        for place, picture in enumerate(pictures):
            try:
                with self.connection.transaction():
                    new += self._execute(
                        INSERT, condition=sql.SQL("place = {}").format(sql.Literal(place))
                    ).rowcount
            except psycopg.Error as error:
                if error.sqlstate not in REFUSED:
                    raise
                refused.append((picture.name, error.diag.message_primary))
        return new, refused


def without_nul(value):
    """A text without the character that PostgreSQL's texts cannot hold."""
    return value.replace("\0", "") if isinstance(value, str) else value


def storable(value):
    """The same for the texts in a JSON value."""
    if isinstance(value, dict):
        return {without_nul(key): storable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [storable(part) for part in value]
    return without_nul(value)
