"""What of the benchmark needs no database: readers, neighbours, bisection, methods, reports."""

import importlib.util
import sys
import tempfile
import unittest
from pathlib import Path

ANN = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ANN), str(ANN.parent)]

import data
import goals
import methods
import numpy as np
import pgbench
import report
import search
import store
import truth
from results import Results


def drawn(count, dimensions, seed=0):
    return np.random.default_rng(seed).standard_normal((count, dimensions), np.float32)


class Readers(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.vectors = drawn(30, 5)

    def fvecs(self, vectors):
        file = self.folder / "some.fvecs"
        dimensions = np.full((len(vectors), 1), vectors.shape[1], np.int32)
        file.write_bytes(np.hstack([dimensions, vectors.view(np.int32)]).tobytes())
        return file

    def test_fvecs(self):
        read = data.from_file(self.fvecs(self.vectors), 4, None, "l2")
        np.testing.assert_array_equal(read.queries, self.vectors[:4])
        np.testing.assert_array_equal(read.rows, self.vectors[4:])

    def test_fvecs_of_wrong_length_or_mixed_dimensions(self):
        file = self.fvecs(self.vectors)
        whole = file.read_bytes()
        file.write_bytes(whole[:-4])
        with self.assertRaises(data.BadData):
            data.read_fvecs(file)
        file.write_bytes(whole[:24] + np.int32(7).tobytes() + whole[28:])
        with self.assertRaises(data.BadData):
            data.read_fvecs(file)

    def test_npy(self):
        file = self.folder / "some.npy"
        np.save(file, self.vectors)
        read = data.from_file(file, 4, 10, "ip")
        np.testing.assert_array_equal(read.rows, self.vectors[4:14])
        self.assertEqual(read.metric, "ip")
        np.save(file, np.arange(4))
        with self.assertRaises(data.BadData):
            data.from_file(file, 1, None, "ip")

    @unittest.skipUnless(importlib.util.find_spec("h5py"), "h5py is not installed")
    def test_hdf5(self):
        import h5py

        file = self.folder / "some.hdf5"
        with h5py.File(file, "w") as target:
            target["train"], target["test"] = self.vectors[4:], self.vectors[:4]
            target.attrs["distance"] = "angular"
        read = data.from_file(file, 3, None, "l2")
        self.assertEqual((read.metric, read.queries.shape), ("ip", (3, 5)))
        np.testing.assert_allclose(np.linalg.norm(read.rows, axis=1), 1, rtol=1e-6)
        with h5py.File(file, "a") as target:
            target.attrs["distance"] = "jaccard"
        with self.assertRaises(data.BadData):
            data.read_hdf5(file)

    def test_too_few(self):
        with self.assertRaises(data.BadData):
            data.split(self.vectors, 30)


class Drawn(unittest.TestCase):
    mixture = data.Mixture(300, dimensions=32, clusters=7, intrinsic=3)

    def draw(self, count):
        array = np.empty((count, 32), np.float32)
        data.Mixture(count, dimensions=32, clusters=7, intrinsic=3).draw_into(array)
        return array

    def test_more_begin_like_fewer(self):
        np.testing.assert_allclose(self.draw(300)[:200], self.draw(200), rtol=0, atol=1e-6)

    def test_length(self):
        np.testing.assert_allclose(np.linalg.norm(self.draw(300), axis=1), 1, rtol=1e-5)

    def test_further_rows_keep_their_length_and_shift(self):
        rows = 3 * data.unit(drawn(100, 32))
        known = data.Data("some", "rows", rows, rows[:1], "ip")
        more = data.more_rows(known, 500)
        shifted = data.more_rows(known, 500, 2.0)
        np.testing.assert_allclose(np.linalg.norm(shifted, axis=1), 3, rtol=1e-5)
        self.assertLess(np.linalg.norm(more.mean(0)), 0.5)
        self.assertGreater(np.linalg.norm(shifted.mean(0)), 2)

    def test_buckets_are_equally_full(self):
        counts = np.bincount(data.bucket_of(np.arange(100_000)), minlength=100)
        self.assertEqual(len(counts), 100)
        self.assertTrue((abs(counts - 1000) < 200).all())


class Neighbours(unittest.TestCase):
    def setUp(self):
        self.rows, self.queries = drawn(400, 8), drawn(5, 8, 1)

    def known(self, metric):
        return data.Data("some", "rows", self.rows, self.queries, metric)

    def test_recall(self):
        for metric in ("ip", "l2"):
            known = self.known(metric)
            exact = truth.Truth(known, truth.tenth_scores(known))
            if metric == "ip":
                order = np.argsort(-(self.queries @ self.rows.T), axis=1)
            else:
                order = np.argsort(((self.queries[:, None] - self.rows) ** 2).sum(2), axis=1)
            self.assertEqual(exact.recall(order[:, :10].tolist()), 1)
            self.assertEqual(exact.recall(order[:, 5:15].tolist()), 0.5)
            self.assertEqual(exact.recall([[]] * 5), 0)
            # What is returned twice is found once.
            self.assertEqual(exact.recall(order[:, [0] * 10].tolist()), 0.1)

    def test_filter(self):
        known = self.known("ip")
        kept = np.arange(400) % 4 == 0
        tenth = truth.tenth_scores(known, kept)
        expected = np.sort(self.queries @ self.rows[kept].T, axis=1)[:, -10]
        np.testing.assert_allclose(tenth, expected, rtol=1e-5)


class Bisection(unittest.TestCase):
    def test_a_recall_that_none_reaches_takes_no_rounds(self):
        self.assertEqual(search.take_rounds(None, [], {}, {}, 3), {})

    def test_finds_the_least(self):
        for least, most in ((1, 1), (1, 100), (10, 1000)):
            for answer in range(least, most + 1, 3):
                found = search.least_setting(lambda n, answer=answer: n >= answer, 1, least, most)
                self.assertEqual(found, answer)

    def test_none(self):
        self.assertIsNone(search.least_setting(lambda _: 0.5, 0.9, 1, 100))

    def test_doubling_ends(self):
        self.assertEqual(list(search.doubling(lambda n: n / 20, 3, 100)), [3, 6, 12, 24])
        self.assertEqual(list(search.doubling(lambda _: 0.1, 10, 50)), [10, 20, 40, 50])


class Methods(unittest.TestCase):
    def test_parse(self):
        method = methods.parse(
            'name=other,using=vchordrq,with="lists = {lists}, a = b",'
            "setting=vchordrq.probes,most=50,set=x.y=1;z=2"
        )
        self.assertEqual(
            method.create_index("i", "t", "l2", 7),
            "CREATE INDEX i ON t USING vchordrq (v vector_l2_ops) WITH (lists = 7, a = b)",
        )
        self.assertEqual((method.highest(100), method.session), (50, {"x.y": "1", "z": "2"}))
        for wrong in ("using=a", "using=a,setting=b,colour=c", "nothing", 'using="a'):
            with self.assertRaises(methods.BadMethod):
                methods.parse(wrong)

    def test_factories(self):
        self.assertEqual(
            methods.faiss_factory("OPQ16,IVF,PQ16x4fs,Refine(SQ8)", 9), "OPQ16,IVF9,PQ16x4fs,Refine(SQ8)"
        )
        self.assertEqual(methods.faiss_factory("IVF5,Flat", 9), "IVF5,Flat")
        chosen, peers = methods.choose(["faiss_ivf", "hnsw"], ["IVF,SQ8"], [], True)
        self.assertEqual([method.name for method in chosen], ["faiss_ivf", "hnsw", "faiss_ivf IVF,SQ8"])
        self.assertEqual(peers, ["RR,IVF,RaBitQ,Refine(SQ8)", "IVF,SQ8"])
        with self.assertRaises(methods.BadMethod):
            methods.choose(["hnsw"], [], ["name=hnsw,using=hnsw,setting=hnsw.ef_search"], False)


class Logs(unittest.TestCase):
    def test_rate(self):
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in ("log.1", "log.1.1")]
            files[0].write_text("0 1 9000 0 1 1\n0 2 1000 0 1 2\n")
            files[1].write_text("1 1 9000 0 1 1\n1 2 500 0 1 2\n")
            seconds = pgbench.read_logs(files, 2)
        # The first of each does not count.
        self.assertAlmostEqual(pgbench.rate(pgbench.warm(seconds)), 1000 + 2000)

    def test_copy(self):
        raw = store.binary_rows(258, np.array([[1.0, -2.0]], np.float32))
        fields = [
            b"\0\3",
            b"\0\0\0\4\0\0\1\2",
            b"\0\0\0\2" + int(data.bucket_of([258])[0]).to_bytes(2, "big"),
        ]
        fields += [b"\0\0\0\x0c\0\2\0\0", b"\x3f\x80\0\0\xc0\0\0\0"]
        self.assertEqual(raw, b"".join(fields))


class Reports(unittest.TestCase):
    def results(self, folder):
        results = Results(folder, "some")
        results.content = {"data": "some", "lists": 3, "rows": 9, "dimensions": 2, "runs": {}, "methods": {}}
        for name, rate, turns in (("faiss_ivf", 130.0, 1), ("ivfflat", 10.0, 1), ("hnsw", 100.0, 2)):
            point = {
                "setting": 3,
                "recall": 0.951,
                "qps": [rate, rate + 10],
                "p50": 0.9,
                "p95": 2.0,
                "p99": 3.0,
            }
            results.methods[name] = {
                "using": name,
                "options": "",
                "varied": "x",
                "search": {"turns": turns, "targets": {"0.95": point}, "curve": []},
            }
        return results

    def test_goals(self):
        with tempfile.TemporaryDirectory() as folder:
            results = self.results(folder)
        found = [goal.words() for goal in goals.goals(results, "faiss_ivf", True)]
        self.assertEqual(found[0], "10.00 (7.00 to 13.00): **missed**")
        # Not measured in the same turns: the ratio of the medians.
        self.assertEqual(found[1], "1.29: **missed**")
        self.assertEqual(found[2], "0.90: **missed**")
        self.assertEqual(found[3], "not measured")
        # Of other codes it is told, but they promise nothing of it.
        other = {**results.methods["faiss_ivf"], "options": "factory = 'IVF,SQ8'", "around": 0.7}
        results.methods["faiss_ivf IVF,SQ8"] = other
        found = [goal.words() for goal in goals.goals(results, "faiss_ivf IVF,SQ8", True)]
        self.assertEqual(found[0], "10.00 (7.00 to 13.00)")
        self.assertEqual(found[2:4], ["0.90", "0.70"])

    def test_tables(self):
        with tempfile.TemporaryDirectory() as folder:
            results = self.results(folder)
        table = report.search_table(results, "0.95")
        self.assertIn("| ivfflat | 3 | 0.951 | 15 (10 to 20) | 0.90 | 2.00 | – | – | – |", table)
        self.assertIn("| hnsw | not measured |", report.search_table(results, "0.99"))
        results.methods["hnsw"]["search"]["targets"]["0.99"] = None
        self.assertIn("| hnsw | does not reach it |", report.search_table(results, "0.99"))

    def test_results_of_other_data_are_dropped(self):
        rows = drawn(20, 3)
        with tempfile.TemporaryDirectory() as folder:
            for count, kept in ((10, False), (10, True), (20, False)):
                results = Results(folder, "some")
                results.describe(data.Data("some", "rows", rows[:count], rows[:1], "ip"), 3)
                self.assertEqual("hnsw" in results.methods, kept)
                results.keep("search", "hnsw", {})
                results.save()

    def test_results_of_another_library_are_dropped(self):
        with tempfile.TemporaryDirectory() as folder:
            results = self.results(folder)
        results.take_library("faiss_ivf", "one")
        results.keep("build", "faiss_ivf", {})
        results.take_library("faiss_ivf", "one")
        self.assertIn("build", results.methods["faiss_ivf"])
        results.take_library("faiss_ivf", "two")
        self.assertEqual(results.methods["faiss_ivf"], {"library": "two"})
        self.assertIn("search", results.methods["hnsw"])


if __name__ == "__main__":
    unittest.main()
