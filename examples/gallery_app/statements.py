"""The gallery's searches as SQL, with their values filled in: what is shown is what runs."""

from dataclasses import dataclass, field

from psycopg import sql

from .catalog import Choices

# Reciprocal rank fusion: the larger, the less the first places count over the next.
RRF_K = 60
# Each of the two searches gives so many times the pictures that are wanted to the fusion.
RRF_DEPTH = 4
VECTOR, HYBRID = "vector", "hybrid"


@dataclass(frozen=True)
class Request:
    """A search: by a text, or by the picture with the id `like`, or by neither, which is browsing.

    `chosen` has a value for each filter of the catalog: a list of values of a
    `Choices`, a number for a `Limit`, and None or nothing where all will do.
    """

    text: str = ""
    like: object = None
    mode: str = VECTOR
    limit: int = 24
    chosen: list = field(default_factory=list)


def build(catalog, request):
    """The statement of a request: `sql.Composed`. Its rows are id, description, the filters' columns, score."""
    where = conditions(catalog, request.chosen)
    if request.like is not None:
        source = names(
            catalog,
            "(SELECT {vector} FROM {table} WHERE {id} = {like})",
            like=sql.Literal(request.like),
        )
        other = names(catalog, "{id} <> {like}", like=sql.Literal(request.like))
        return by_vector(catalog, source, [*where, other], request.limit, bool(where))
    if not request.text:
        return browse(catalog, where, request.limit)
    source = sql.SQL("embed({})").format(sql.Literal(request.text))
    if request.mode == HYBRID:
        return hybrid(catalog, source, request.text, where, request.limit)
    return by_vector(catalog, source, where, request.limit, bool(where))


def order(catalog, request):
    """What `faiss_ivf.iterative_scan` must be for the request.

    What a filter takes away makes the index go on to further lists. In strict order it would leave
    out what it finds there and is nearer than what it has seen; so filtered searches take that too,
    and sort themselves.
    """
    searches = request.text or request.like is not None
    filtered = searches and conditions(catalog, request.chosen)
    return "relaxed_order" if filtered else "strict_order"


def describe(catalog, key):
    """The description of one row, and whether it has a vector."""
    return names(
        catalog,
        "SELECT {description}, {vector} IS NOT NULL FROM {table} WHERE {id} = {key}",
        key=sql.Literal(key),
    )


def picture(catalog, key):
    """The picture of one row."""
    return names(catalog, "SELECT {image} FROM {table} WHERE {id} = {key}", key=sql.Literal(key))


def browse(catalog, where, limit):
    return names(
        catalog,
        "SELECT {columns}, NULL AS score\nFROM {table}{where}\nORDER BY {id} DESC\nLIMIT {limit}",
        columns=columns(catalog),
        where=clause(where),
        limit=sql.Literal(limit),
    )


def by_vector(catalog, source, where, limit, filtered):
    text = """\
SELECT {columns},
       {score} AS score
FROM {table}{where}
ORDER BY {distance}
LIMIT {limit}"""
    indent = 4 if filtered else 0
    found = names(
        catalog,
        "\n".join(" " * indent + line for line in text.splitlines()),
        columns=columns(catalog),
        score=score(catalog, source),
        where=clause(where, indent),
        distance=distance(catalog, source),
        limit=sql.Literal(limit),
    )
    if not filtered:
        return found
    # By the score, not by the distance: that PostgreSQL would believe to be sorted already.
    return sql.SQL(
        "WITH found AS MATERIALIZED (\n{}\n)\nSELECT * FROM found ORDER BY score DESC"
    ).format(found)


def hybrid(catalog, source, text, where, limit):
    query = sql.SQL("websearch_to_tsquery({}, {})").format(catalog.text_config, text)
    words = sql.SQL(catalog.words)
    matches = sql.SQL("{} @@ {}").format(words, query)
    return names(
        catalog,
        """\
WITH nearest AS (
    SELECT {id}, row_number() OVER (ORDER BY distance + 0, {id}) AS place
    FROM (SELECT {id}, {distance} AS distance
          FROM {table}{where}
          ORDER BY {distance}
          LIMIT {depth}) AS by_vector
), matching AS (
    SELECT {id}, row_number() OVER (ORDER BY rank DESC, {id}) AS place
    FROM (SELECT {id}, ts_rank_cd({words}, {query}) AS rank
          FROM {table}{where_words}
          ORDER BY rank DESC, {id}
          LIMIT {depth}) AS by_words
), fused AS (
    SELECT {id}, sum(1.0 / ({k} + place)) AS score
    FROM (TABLE nearest UNION ALL TABLE matching) AS places
    GROUP BY {id}
    ORDER BY score DESC, {id}
    LIMIT {limit}
)
SELECT {columns}, fused.score
FROM fused JOIN {table} USING ({id})
ORDER BY fused.score DESC, {id}""",
        columns=columns(catalog),
        distance=distance(catalog, source),
        where=clause(where, indent=10),
        where_words=clause([matches, *where], indent=10),
        words=words,
        query=query,
        k=sql.Literal(RRF_K),
        depth=sql.Literal(RRF_DEPTH * limit),
        limit=sql.Literal(limit),
    )


def names(catalog, text, **more):
    """The text with the catalog's names and further parts filled in."""
    own = {
        name: sql.SQL(getattr(catalog, name))
        for name in ("table", "id", "image", "description", "vector")
    }
    return sql.SQL(text).format(**own, **more)


def columns(catalog):
    shown = [catalog.id, catalog.description]
    return sql.SQL(", ").join(
        [sql.SQL(name) for name in [*shown, *(one.column for one in catalog.filters)]]
    )


def distance(catalog, source):
    return sql.SQL("{} {} {}").format(sql.SQL(catalog.vector), sql.SQL(catalog.operator), source)


def score(catalog, source):
    return sql.SQL(catalog.score).format(distance(catalog, source))


def conditions(catalog, chosen):
    """The conditions of the filters that are set."""
    found = []
    for one, value in zip(catalog.filters, chosen, strict=False):
        column = sql.SQL(one.column)
        if isinstance(one, Choices):
            if value:
                values = sql.SQL(", ").join(map(sql.Literal, value))
                found.append(sql.SQL("{} IN ({})").format(column, values))
        elif value is not None and value < one.high:
            found.append(sql.SQL("{} <= {}").format(column, sql.Literal(value)))
    return found


def clause(where, indent=0):
    if not where:
        return sql.SQL("")
    start = sql.SQL("\n" + " " * indent + "WHERE ")
    return start + sql.SQL("\n" + " " * indent + "  AND ").join(where)
