"""The true neighbours of queries, and the recall of answers."""

import hashlib
from pathlib import Path

import numpy as np
from data import SPARE, TIE

NEIGHBOURS = 10


def scores(rows, queries, metric):
    """(queries, rows) of a number that is greater for nearer rows, in the precision of the operands."""
    product = queries @ rows.T
    if metric == "ip":
        return product
    return 2 * product - np.einsum("ij,ij->i", rows, rows)


class Truth:
    """The tenth score of each query among rows, in double precision, float64 (queries,).

    An answer counts as found if its score is not below the tenth, so that of
    rows with the same score any will do.
    """

    def __init__(self, data, tenth, queries=None):
        self.data = data
        self.queries = data.queries if queries is None else queries
        self.tenth = tenth
        self.tie = TIE * np.abs(tenth).max()

    def recall(self, answers, rows=None):
        """Mean share of the ten nearest among what was returned; answers: row numbers of each query."""
        rows = self.data.rows if rows is None else rows
        found = 0
        for query, tenth, ids in zip(self.queries, self.tenth, answers, strict=True):
            ids = sorted(set(ids))
            if ids:
                got = exact_scores(rows, ids, query, self.data.metric)
                found += min(np.count_nonzero(got >= tenth - self.tie), NEIGHBOURS)
        return found / (NEIGHBOURS * len(answers))


def exact_scores(rows, ids, query, metric):
    """Scores of some rows for one query, float64 (ids,)."""
    picked = np.asarray(rows[ids], np.float64)
    return scores(picked, np.asarray(query[None], np.float64), metric)[0]


def tenth_scores(data, kept=None, queries=None):
    """The tenth best score of each query among all rows, or those where kept (n,) is true."""
    queries = data.queries if queries is None else queries
    count = NEIGHBOURS + SPARE
    best = np.full((len(queries), count), -np.inf, np.float32)
    ids = np.zeros((len(queries), count), np.int64)
    for start, rows in data.chunks():
        numbers = np.arange(start, start + len(rows))
        if kept is not None:
            rows, numbers = rows[kept[numbers]], numbers[kept[numbers]]
        for place in range(0, len(queries), 200):
            part = slice(place, place + 200)
            found = scores(rows, queries[part], data.metric)
            both = np.concatenate([best[part], found], axis=1)
            keep = np.argpartition(both, -count, axis=1)[:, -count:]
            names = np.concatenate([ids[part], np.broadcast_to(numbers, found.shape)], axis=1)
            best[part] = np.take_along_axis(both, keep, axis=1)
            ids[part] = np.take_along_axis(names, keep, axis=1)
    tenth = np.empty(len(queries))
    for place, query in enumerate(queries):
        known = ids[place][np.isfinite(best[place])]
        tenth[place] = np.sort(exact_scores(data.rows, known, query, data.metric))[-NEIGHBOURS]
    return tenth


def truth(data, cache, kept=None, label="all"):
    """The truth of the data's queries, kept in the folder `cache`."""
    digest = hashlib.sha256(f"{data.name} {data.rows.shape} {data.metric} {label}".encode())
    # A sample tells files of the same name and shape apart.
    digest.update(np.ascontiguousarray(data.rows[:: max(len(data) // 1000, 1)]).tobytes())
    digest.update(data.queries.tobytes())
    file = Path(cache) / f"truth-{digest.hexdigest()[:16]}.npy"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, tenth_scores(data, kept))
    return Truth(data, np.load(file))
