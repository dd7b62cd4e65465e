"""search.sql on 5,000 products: answers against brute force, plans, recall."""

import sys
import unittest

import numpy as np
import psycopg
from cluster import REPO, DatabaseTest

sys.path.insert(0, str(REPO / "tools" / "demo"))

from draw import Product, catalogue_entry  # noqa: E402

ROWS = 5_000
# No two products have the same vector, so that there is one right order.
NOISE = 0.02
QUERIES = [
    "red striped sneakers", "something to drink from", "black leather boots", "dotted dress",
    "yellow umbrella", "a seat for the living room", "blue", "white checked mug", "jeans",
    "green hats and caps", "elegant pink shoes", "bag for travelling",
]  # fmt: skip


class SearchTest(DatabaseTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # Parameters of EXECUTE are none of the protocol: psycopg puts them into the text.
        cls.connection = cls.connect(cursor_factory=psycopg.ClientCursor)
        cls.addClassCleanup(cls.connection.close)
        cls.connection.execute("""
            CREATE TABLE product (
                id bigint PRIMARY KEY, description text, desc_vec vector(384),
                category text, colour text, price numeric(10, 2))""")
        cls.fill()
        file = (REPO / "examples" / "search.sql").read_text()
        cls.outputs = [
            result.fetchall()
            for result in cls.connection.execute(file).results()
            if result.description is not None
        ]

    @classmethod
    def fill(cls):
        products = [Product.sample(seed) for seed in range(ROWS)]
        # Without the background there are some hundred captions, which are soon embedded.
        captions = [product.caption.rpartition(" on ")[0] for product in products]
        entries = [catalogue_entry(product) for product in products]
        distinct = sorted(set(captions))
        vectors = cls.embed(distinct)[np.searchsorted(distinct, captions)]
        vectors += np.random.default_rng(5).normal(scale=NOISE, size=vectors.shape)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        # As PostgreSQL stores them.
        cls.vectors = vectors.astype(np.float32).astype(np.float64)
        cls.categories = np.array([entry["category"] for entry in entries])
        cls.prices = np.array([float(entry["price"]) for entry in entries])
        with (
            cls.connection.cursor() as cursor,
            cursor.copy(
                "COPY product (id, description, desc_vec, category, colour, price) FROM STDIN"
            ) as copy,
        ):
            for key, (caption, vector, entry) in enumerate(
                zip(captions, cls.vectors, entries, strict=True)
            ):
                copy.write_row([key, caption, as_text(vector), *entry.values()])

    @classmethod
    def embed(cls, texts):
        """Their embeddings: (texts, 384)."""
        statement = "SELECT v::text FROM unnest(embed_batch(%s)) AS v"
        rows = cls.connection.execute(statement, [texts]).fetchall()
        return np.array([np.fromstring(text[1:-1], sep=",") for (text,) in rows])

    def execute(self, name, *values):
        """The ids that a prepared statement of the file gives."""
        marks = ", ".join(["%s"] * len(values))
        rows = self.connection.execute(f"EXECUTE {name}({marks})", values).fetchall()
        return [row[0] for row in rows]

    def nearest(self, query, allowed=None):
        """All row numbers that are allowed, the nearest to the query's embedding first."""
        distances = -self.vectors @ self.embed([query])[0]
        rows = np.arange(ROWS) if allowed is None else np.flatnonzero(allowed)
        return rows[np.argsort(distances[rows], kind="stable")].tolist()

    def exactly(self):
        """Until the test ends, searches of the session are exact: all lists, and no bound but a sure one."""
        for setting, value in [("nprobe", "1000"), ("target_recall", "1")]:
            self.set(setting, value)

    def set(self, setting, value):
        ((before,),) = self.connection.execute(f"SHOW faiss_ivf.{setting}").fetchall()
        self.connection.execute(f"SET faiss_ivf.{setting} = {value}")
        self.addCleanup(self.connection.execute, f"SET faiss_ivf.{setting} = {before}")

    def plan(self, name, *values):
        marks = ", ".join(["%s"] * len(values))
        statement = f"EXPLAIN (COSTS OFF) EXECUTE {name}({marks})"
        return "\n".join(line for (line,) in self.connection.execute(statement, values).fetchall())

    def by_words(self, query):
        """Ids by full text, the best first, from a scan of the whole table."""
        with self.connection.transaction():
            self.connection.execute(
                "SET LOCAL enable_bitmapscan = off; SET LOCAL enable_indexscan = off"
            )
            rows = self.connection.execute(
                """
                SELECT id FROM product, websearch_to_tsquery('english', %s) AS query
                WHERE to_tsvector('english', description) @@ query
                ORDER BY ts_rank_cd(to_tsvector('english', description), query) DESC, id""",
                [query],
            ).fetchall()
        return [key for (key,) in rows]

    def fused(self, query):
        scores = {}
        for found in self.nearest(query)[:40], self.by_words(query)[:40]:
            for place, key in enumerate(found, 1):
                scores[key] = scores.get(key, 0) + 1 / (60 + place)
        return sorted(scores, key=lambda key: (-scores[key], key))[:10]

    def recall(self, answers, truths):
        found = [len(set(a) & set(t)) / len(t) for a, t in zip(answers, truths, strict=True)]
        return sum(found) / len(found)

    def test_every_statement_of_the_file_gives_rows(self):
        self.assertEqual(len(self.outputs), 9)
        for rows in self.outputs:
            self.assertGreater(len(rows), 0)

    def test_hybrid_search_is_the_fusion_of_both(self):
        self.exactly()
        both = 0
        for query in QUERIES:
            with self.subTest(query):
                self.assertEqual(self.execute("hybrid", query), self.fused(query))
                both += len(self.by_words(query)) > 0
        # Else only one of the two would be tested.
        self.assertGreater(both, 4)

    def test_hybrid_search_uses_both_indexes(self):
        plan = self.plan("hybrid", "red striped sneakers")
        self.assertIn("Index Scan using product_desc_vec_idx", plan)
        self.assertIn("Bitmap Index Scan on product_words_idx", plan)

    def test_a_wide_filter_is_exact_where_all_is_read(self):
        self.exactly()
        self.set("iterative_scan", "relaxed_order")
        for query in QUERIES:
            with self.subTest(query):
                truth = self.nearest(query, self.prices <= 60)[:10]
                self.assertEqual(self.execute("affordable", query, 60), truth)
        self.assertIn(
            "Index Scan using product_desc_vec_idx",
            self.plan("affordable", "red striped sneakers", 60),
        )

    def test_a_wide_filter_finds_and_sorts_what_is_near(self):
        self.set("iterative_scan", "relaxed_order")
        answers = [self.execute("affordable", query, 60) for query in QUERIES]
        truths = [self.nearest(query, self.prices <= 60)[:10] for query in QUERIES]
        self.assertGreaterEqual(self.recall(answers, truths), 0.95)

    def test_rows_of_later_lists_are_sorted_in(self):
        # From one list on: rows come from many lists, not in order.
        self.set("iterative_scan", "relaxed_order")
        self.set("nprobe", "1")
        self.set("target_recall", "0.5")
        unsorted = 0
        for query in QUERIES:
            places = self.nearest(query)
            answer = [places.index(key) for key in self.execute("affordable", query, 13)]
            self.assertEqual(answer, sorted(answer), query)
            self.assertEqual(len(answer), 10)
            unsorted += self.lists_read() > 1
        self.assertGreater(unsorted, 0)

    def lists_read(self):
        ((lists,),) = self.connection.execute(
            "SELECT lists_probed FROM sight_index_last_scan()"
        ).fetchall()
        return lists

    def test_a_narrow_filter_is_exact_by_the_ordinary_index(self):
        for query in QUERIES:
            with self.subTest(query):
                allowed = (self.categories == "sneaker") & (self.prices <= 60)
                truth = self.nearest(query, allowed)[:10]
                self.assertEqual(self.execute("narrow", query, "sneaker", 60), truth)
        plan = self.plan("narrow", "red striped", "sneaker", 60)
        self.assertIn("Bitmap Index Scan on product_category_price_idx", plan)
        self.assertNotIn("product_desc_vec_idx", plan)

    def test_a_partial_index_serves_its_condition(self):
        answers = [self.execute("sneakers", query) for query in QUERIES]
        truths = [self.nearest(query, self.categories == "sneaker")[:10] for query in QUERIES]
        self.assertGreaterEqual(self.recall(answers, truths), 0.95)
        self.assertIn("Index Scan using product_sneaker_idx", self.plan("sneakers", "red striped"))

    def test_plain_search_has_its_recall(self):
        statement = "SELECT id FROM product ORDER BY desc_vec <#> embed(%s) LIMIT 10"
        answers = [
            [key for (key,) in self.connection.execute(statement, [query]).fetchall()]
            for query in QUERIES
        ]
        truths = [self.nearest(query)[:10] for query in QUERIES]
        self.assertGreaterEqual(self.recall(answers, truths), 0.95)


def as_text(vector):
    return "[" + ",".join(f"{value:.9g}" for value in vector) + "]"


if __name__ == "__main__":
    unittest.main()
