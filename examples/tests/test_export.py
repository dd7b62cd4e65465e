"""Exported vectors, and that FAISS finds over them what the index finds."""

import tempfile
import unittest
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
from cluster import DIMENSIONS, DatabaseTest
from support import Product, run

import export

ROWS = 600
LISTS = 15
NEIGHBOURS = 10
# Captions of drawn products, each other than all before.
CAPTIONS = list({Product.sample(seed).caption: None for seed in range(8_200_000, 8_202_000)})
QUERIES = ["red sneakers", "something to sit on", *CAPTIONS[ROWS : ROWS + 20]]


class Export(DatabaseTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        with cls.connect() as connection:
            connection.execute(
                "CREATE TABLE picture (id int PRIMARY KEY, description text, desc_vec vector(384))"
            )
            connection.execute(
                "INSERT INTO picture SELECT 3 * place, text"
                " FROM unnest(%s::text[]) WITH ORDINALITY AS t (text, place)",
                [CAPTIONS[:ROWS]],
            )
            connection.execute(
                "UPDATE picture p SET desc_vec = b.v FROM ("
                " SELECT i.id, i.v FROM (SELECT array_agg(id) AS ids,"
                " embed_batch(array_agg(description)) AS vs FROM picture) AS a,"
                " unnest(a.ids, a.vs) AS i (id, v)) AS b WHERE p.id = b.id"
            )
            # Not in the order of the ids, and one without a vector.
            connection.execute("UPDATE picture SET description = description WHERE id % 2 = 0")
            connection.execute("INSERT INTO picture VALUES (1, 'not embedded', NULL)")
            connection.execute(
                "CREATE INDEX ON picture USING faiss_ivf (desc_vec vector_ip_ops)"
                f" WITH (factory = 'IVF{LISTS},Flat')"
            )

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def export(self, name, *arguments):
        return run("export.py", self.folder / name, "--dsn", self.dsn, *arguments)

    def npy(self):
        self.assertEqual(self.export("e.npy")[0], 0)
        return np.load(self.folder / "e.npy"), np.load(self.folder / "e.ids.npy")

    def index_finds(self, nprobe):
        """Ids and inner products that the index finds for each of QUERIES."""
        statement = (
            "SELECT id, -(desc_vec <#> embed(%(q)s)) FROM picture"
            " ORDER BY desc_vec <#> embed(%(q)s) LIMIT 10"
        )
        with self.connect() as connection:
            connection.execute(f"SET faiss_ivf.nprobe = {nprobe}")
            connection.execute("SET enable_seqscan = off")
            plan = connection.execute("EXPLAIN " + statement, {"q": QUERIES[0]}).fetchall()
            self.assertIn("picture_desc_vec_idx", str(plan))
            return [connection.execute(statement, {"q": query}).fetchall() for query in QUERIES]

    def query_vectors(self):
        found = self.query("SELECT embed(q)::real[] FROM unnest(%s::text[]) AS q", [QUERIES])
        return np.array([vector for (vector,) in found], np.float32)

    def test_npy_holds_what_the_table_holds(self):
        vectors, ids = self.npy()
        self.assertEqual((vectors.dtype, vectors.shape), (np.float32, (ROWS, DIMENSIONS)))
        self.assertEqual((ids.dtype, ids.shape), (np.int64, (ROWS,)))
        rows = self.query(
            "SELECT id, desc_vec::real[] FROM picture WHERE desc_vec IS NOT NULL ORDER BY id"
        )
        np.testing.assert_array_equal(ids, [row[0] for row in rows])
        np.testing.assert_array_equal(vectors, np.array([row[1] for row in rows], np.float32))

    def test_parquet_holds_the_same(self):
        self.assertEqual(self.export("e.parquet")[0], 0)
        vectors, ids = self.npy()
        table = pq.read_table(self.folder / "e.parquet")
        np.testing.assert_array_equal(table["id"], ids)
        flat = table["embedding"].combine_chunks().flatten()
        np.testing.assert_array_equal(np.asarray(flat).reshape(vectors.shape), vectors)
        described = self.query(
            "SELECT description FROM picture WHERE desc_vec IS NOT NULL ORDER BY id"
        )
        self.assertEqual(table["description"].to_pylist(), [text for (text,) in described])

    def test_faiss_finds_what_the_index_finds(self):
        """All lists of both: the same rows in the same order, but for equal distances."""
        vectors, ids = self.npy()
        index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(DIMENSIONS), DIMENSIONS, LISTS, faiss.METRIC_INNER_PRODUCT
        )
        index.train(vectors)
        index.add_with_ids(vectors, ids)
        index.nprobe = LISTS
        products, found = index.search(self.query_vectors(), NEIGHBOURS)
        for query, rows in enumerate(self.index_finds(LISTS)):
            with self.subTest(QUERIES[query]):
                np.testing.assert_allclose([row[1] for row in rows], products[query], atol=1e-5)
                self.assertEqual([row[0] for row in rows], list(found[query]))

    def test_index_by_itself_finds_most_of_them(self):
        """As many lists as the index takes by itself, against FAISS without lists."""
        vectors, ids = self.npy()
        index = faiss.IndexIDMap(faiss.IndexFlatIP(DIMENSIONS))
        index.add_with_ids(vectors, ids)
        _, found = index.search(self.query_vectors(), NEIGHBOURS)
        both = [
            len({row[0] for row in rows} & set(found[query]))
            for query, rows in enumerate(self.index_finds(0))
        ]
        self.assertGreaterEqual(sum(both), 0.9 * NEIGHBOURS * len(QUERIES), both)

    def test_what_is_cut_off_replaces_nothing(self):
        file = self.folder / "e.npy"
        file.write_text("older")
        with self.assertRaises(KeyboardInterrupt), export.replacing(file) as part:
            part.write_text("half")
            raise KeyboardInterrupt
        self.assertEqual([path.name for path in self.folder.iterdir()], ["e.npy"])
        self.assertEqual(file.read_text(), "older")

    def test_nothing_to_export(self):
        with self.connect() as connection:
            connection.execute("CREATE TABLE none (id int, description text, desc_vec vector)")
        status, _, errors = self.export("e.npy", "--table", "none")
        self.assertEqual((status, errors.strip()), (1, "error: table none has no vectors"))
        with self.connect() as connection:
            connection.execute("INSERT INTO none VALUES (1, '', '[1,2]'), (2, '', '[1,2,3]')")
        status, _, errors = self.export("e.npy", "--table", "none")
        self.assertEqual(
            (status, errors.strip()), (1, "error: table none has vectors of 2 to 3 dimensions")
        )
        self.assertEqual(self.export("e.csv")[0], 2)
        self.assertEqual(list(self.folder.iterdir()), [])


if __name__ == "__main__":
    unittest.main()
