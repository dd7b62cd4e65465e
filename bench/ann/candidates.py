"""Those that are measured: an index in PostgreSQL, and FAISS in this process.

Each can tell what it finds at a setting, and how long each query takes.
"""

import time

import database
import numpy as np
import pgbench
from methods import OPERATORS, faiss_factory
from store import index_of
from truth import NEIGHBOURS

# Plans are made once and kept, and reading the table is ruled out: what is
# compared is the indexes, not the planner's thresholds.
SESSION = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "max_parallel_workers_per_gather": 0,
}
# FAISS looks at the refine codes of so many times as many rows as are wanted, where there
# are any; with fewer it does not reach the higher recalls, whatever else is set.
REFINED = 8
# The query of each transaction: one after the other, each client begins elsewhere.
WALK = "\\set i (:i + 1) % :count\n\\set q (:i + :client_id * :step) % :count\n"


class Indexed:
    """An index of one method on one table."""

    def __init__(self, method, table, data, lists):
        self.name = method.name
        self.method = method
        self.table = table
        self.operator = OPERATORS[data.metric]
        self.queries = data.queries
        self.query_table = "query"
        self.least = method.least
        self.most = method.highest(lists)
        self.clients = True
        self.connection = None

    def settings(self, value, condition=""):
        """The session's settings for a search."""
        own = self.method.filtering if condition else self.method.session
        return {**SESSION, **own, self.method.setting: self.method.value(value)}

    def select(self, query, condition="", limit=NEIGHBOURS):
        where = f" WHERE {condition}" if condition else ""
        return f"SELECT id FROM {self.table}{where} ORDER BY v {self.operator} {query} LIMIT {limit}"

    def connect(self):
        """The connection of this candidate's answers; made when it is first wanted."""
        if self.connection is None or self.connection.closed:
            self.connection = database.connect(SESSION)
            # The access method's settings are known once its library is loaded.
            self.connection.execute("SELECT '[1]'::vector")
        return self.connection

    def close(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def prepare(self, value, condition=""):
        """Makes the settings; fails if a query would not use the index. Returns the connection."""
        connection = self.connect()
        for name, setting in self.settings(value, condition).items():
            connection.execute(f"SET {name} = {setting}")
        statement = self.select(f"(SELECT q FROM {self.query_table} WHERE id = 0)", condition)
        plan = [line for (line,) in connection.execute(f"EXPLAIN {statement}").fetchall()]
        if not any(f"Index Scan using {index_of(self.table)}" in line for line in plan):
            raise RuntimeError("a query does not use its index:\n" + "\n".join(plan))
        return connection

    def answers(self, value, condition=""):
        """Row numbers that each query finds."""
        statement = self.select("%b", condition)
        with self.prepare(value, condition).cursor(binary=True) as cursor:
            return [
                [row[0] for row in cursor.execute(statement, [query], prepare=True).fetchall()]
                for query in self.queries
            ]

    def seconds(self, value, clients=1, condition=""):
        """Seconds of each query, by client, after the first ones."""
        statement = self.select(f"(SELECT q FROM {self.query_table} WHERE id = :q)", condition)
        return self.walk(statement, self.settings(value, condition), clients)

    def overhead(self):
        """Seconds of what each query takes besides the search: client, protocol, reading its vector."""
        statement = f"SELECT id FROM {self.query_table} WHERE id = :q AND q IS NOT NULL"
        return self.walk(statement, SESSION)[0]

    def around(self):
        """Seconds of each search of one row that reads as little as it can: of what is around a scan."""
        select = self.select(f"(SELECT q FROM {self.query_table} WHERE id = :q)", limit=1)
        return self.walk(select, {**SESSION, **self.method.session, **self.method.little})[0]

    def walk(self, statement, settings, clients=1):
        """Seconds of the statement for each query, by client."""
        count = len(self.queries)
        variables = {"i": -1, "count": count, "step": count // clients}
        each = -(-count // clients)
        return pgbench.warm(pgbench.run(f"{WALK}{statement};\n", settings, clients, each, variables))


class InProcess:
    """FAISS with one thread, one query at a time, in this process."""

    def __init__(self, factory, data, lists):
        import faiss

        faiss.omp_set_num_threads(1)
        self.faiss = faiss
        self.name = in_process_name(factory)
        self.factory = faiss_factory(factory, lists)
        self.data = data
        self.queries = data.queries
        self.least, self.most = 1, lists
        self.clients = False
        self.index = None

    def build(self):
        """Makes the index; returns the seconds of it."""
        start = time.perf_counter()
        metric = {"ip": self.faiss.METRIC_INNER_PRODUCT, "l2": self.faiss.METRIC_L2}[self.data.metric]
        self.index = self.faiss.index_factory(self.data.dimensions, self.factory, metric)
        self.index.train(self.sample())
        for _, rows in self.data.chunks():
            self.index.add(rows)
        return time.perf_counter() - start

    def sample(self):
        """Rows to learn from: at most 200,000, spread over all."""
        return np.ascontiguousarray(self.data.rows[:: -(-len(self.data) // 200_000)], np.float32)

    def close(self):
        self.index = None

    def prepare(self, value):
        parameters = self.faiss.ParameterSpace()
        parameters.set_index_parameter(self.index, "nprobe", value)
        if "Refine" in self.factory or "RFlat" in self.factory:
            parameters.set_index_parameter(self.index, "k_factor_rf", REFINED)

    def answers(self, value, condition=""):
        if condition:
            raise ValueError("FAISS knows no conditions")
        self.prepare(value)
        return [self.index.search(query[None], NEIGHBOURS)[1][0].tolist() for query in self.queries]

    def seconds(self, value, clients=1):
        """Seconds of each query after the first ones, of the one client that there is."""
        self.prepare(value)
        times = []
        for query in self.queries:
            start = time.perf_counter()
            self.index.search(query[None], NEIGHBOURS)
            times.append(time.perf_counter() - start)
        return pgbench.warm([np.array(times)])


def in_process_name(factory):
    return f"FAISS {factory}"
