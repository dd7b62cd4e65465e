"""What the gallery must know of the table: its columns, what can be filtered, how its index compares."""

import re
from dataclasses import dataclass, field

from psycopg import sql

# A text column with more values than this is no category.
MOST_VALUES = 60
# Values and bounds are read from so many rows: a large table must not delay the start.
ROWS_LOOKED_AT = 100_000

TEXTS = {"text", "varchar", "bpchar", "bool"}
NUMBERS = {"int2", "int4", "int8", "float4", "float8", "numeric"}
VECTORS = {"vector", "halfvec"}

# By the end of an operator class's name: the operator, and the score that it
# gives a row, greatest for the nearest.
MEASURES = {
    "_ip_ops": ("<#>", "-({})"),
    "_cosine_ops": ("<=>", "1 - ({})"),
    "_l2_ops": ("<->", "-({})"),
}


class CatalogError(Exception):
    """The table is not as the gallery needs it; the message says why."""


@dataclass(frozen=True)
class Choices:
    """A filter on a column with few values: any of those that are chosen."""

    title: str
    column: str
    values: list


@dataclass(frozen=True)
class Limit:
    """A filter on a column of numbers: at most so much."""

    title: str
    column: str
    low: float
    high: float


@dataclass(frozen=True)
class Catalog:
    """The table and its columns, names as PostgreSQL spells them in SQL."""

    table: str
    id: str
    image: str
    description: str
    vector: str
    id_is_number: bool
    operator: str
    score: str
    words: str
    text_config: str
    rows_estimate: int
    filters: list = field(default_factory=list)

    def key(self, text):
        """A row's id from the text form that the page holds; `ValueError` where it is none."""
        return int(text) if self.id_is_number else text


def read(connection, args):
    """The catalog of the table that the options name; raises `CatalogError` where it does not serve."""
    found = connection.execute(
        "SELECT c.oid, c.oid::regclass::text, c.reltuples FROM pg_class c WHERE c.oid = to_regclass(%s)",
        [args.table],
    ).fetchone()
    if found is None:
        raise CatalogError(f'there is no table "{args.table}" in this database')
    oid, table, tuples = found
    types = dict(
        connection.execute(
            "SELECT attname, typname FROM pg_attribute a JOIN pg_type t ON t.oid = atttypid"
            " WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            [oid],
        ).fetchall()
    )
    require(types, args.id, None, table)
    require(types, args.image, {"bytea"}, table)
    require(types, args.description, TEXTS, table)
    require(types, args.vector, VECTORS, table)
    operator, score = measure(connection, oid, args.vector)
    words, text_config = full_text(connection, oid, args)
    return Catalog(
        table=table,
        id=quoted(connection, args.id),
        image=quoted(connection, args.image),
        description=quoted(connection, args.description),
        vector=quoted(connection, args.vector),
        id_is_number=types[args.id] in {"int2", "int4", "int8"},
        operator=operator,
        score=score,
        words=words,
        text_config=text_config,
        rows_estimate=int(tuples),
        filters=filters(connection, table, types, args),
    )


def require(types, column, wanted, table):
    if column not in types:
        raise CatalogError(f'table {table} has no column "{column}"; it has {", ".join(types)}')
    if wanted and types[column] not in wanted:
        raise CatalogError(
            f'column "{column}" of table {table} is {types[column]}, not {" or ".join(sorted(wanted))}'
        )


def quoted(connection, name):
    """A column's name as SQL wants it: in quotes only where it needs them."""
    return connection.execute("SELECT quote_ident(%s)", [name]).fetchone()[0]


def measure(connection, oid, vector):
    """Operator and score of the vector column's index, of `faiss_ivf` before others; else inner product."""
    classes = connection.execute(
        """
        SELECT opcname FROM pg_index i
        JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
        JOIN pg_opclass o ON o.oid = i.indclass[0]
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = %s AND i.indisvalid AND i.indpred IS NULL AND a.attname = %s
        ORDER BY amname <> 'faiss_ivf', amname
        """,
        [oid, vector],
    ).fetchall()
    for (name,) in classes:
        for ending, operator in MEASURES.items():
            if name.endswith(ending):
                return operator
    return MEASURES["_ip_ops"]


def full_text(connection, oid, args):
    """The text-search expression to match words with, that of a GIN index if there is one, and its configuration."""
    indexed = connection.execute(
        """
        SELECT pg_get_indexdef(i.indexrelid, 1, true) FROM pg_index i
        JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
        JOIN pg_opclass o ON o.oid = i.indclass[0]
        WHERE i.indrelid = %s AND i.indisvalid AND i.indpred IS NULL
          AND amname = 'gin' AND o.opcintype = 'tsvector'::regtype
        """,
        [oid],
    ).fetchone()
    if indexed is None:
        own = sql.SQL("to_tsvector({}, {})").format(
            args.text_config, sql.Identifier(args.description)
        )
        return own.as_string(connection), args.text_config
    of_index = re.match(r"to_tsvector\('([^']+)'::regconfig, ", indexed[0])
    if of_index is None:
        return indexed[0], args.text_config
    # 'english'::regconfig and 'english' are the same expression here, and the second reads better.
    return indexed[0].replace("::regconfig", "", 1), of_index[1]


def filters(connection, table, types, args):
    """The filters of the columns that the options name, or else of all that suit."""
    # The statements call the last column "score".
    own = {args.id, args.image, args.description, args.vector, "score"}
    names = args.filter or [name for name in types if name not in own]
    found = []
    for name in names:
        if name in own:
            raise CatalogError(f'column "{name}" cannot be a filter')
        if args.filter:
            require(types, name, TEXTS | NUMBERS, table)
        one = filter_of(connection, table, name, types[name])
        if one is not None:
            found.append(one)
        elif args.filter:
            raise CatalogError(
                f'column "{name}" has no values to filter by, or more than {MOST_VALUES}'
            )
    return found


def filter_of(connection, table, name, kind):
    rows_to_see = sql.SQL("(SELECT {} AS value FROM {} LIMIT {}) AS first_rows").format(
        sql.Identifier(name), sql.SQL(table), ROWS_LOOKED_AT
    )
    if kind in TEXTS:
        statement = "SELECT value FROM {} WHERE value IS NOT NULL GROUP BY 1 ORDER BY 1 LIMIT {}"
        rows = connection.execute(
            sql.SQL(statement).format(rows_to_see, MOST_VALUES + 1)
        ).fetchall()
        if 1 < len(rows) <= MOST_VALUES:
            return Choices(name, quoted(connection, name), [value for (value,) in rows])
    if kind in NUMBERS:
        # Not-a-number, which only some types have, is greater than all numbers.
        statement = "SELECT min(value), max(value) FROM {} WHERE value::text <> 'NaN'"
        low, high = connection.execute(sql.SQL(statement).format(rows_to_see)).fetchone()
        if low is not None and low < high:
            return Limit(name, quoted(connection, name), low, high)
    return None
