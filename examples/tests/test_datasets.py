"""Loading data sets with the real library `datasets`: local ones, and from a local hub."""

import io
import json
import tempfile
import unittest
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from cluster import DatabaseTest
from datasets import ClassLabel, Dataset, Features, Image, List, Value, disable_progress_bars
from fake_hub import FakeHub
from support import drawn, run

disable_progress_bars()

PICTURES = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
# Boxes of one picture, in the layout of the detection data sets.
BOXES = Features(
    {
        "image": Image(),
        "image_id": Value("int64"),
        "objects": {
            "category": List(ClassLabel(names=["helmet", "plane"])),
            "bbox": List(List(Value("float32"))),
        },
    }
)


class DatasetTest(DatabaseTest):
    """A folder, with a cache of Hugging Face's libraries in it, and no table yet."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name).resolve()
        self.cache = self.folder / "cache"
        with self.connect() as connection:
            connection.execute("DROP TABLE IF EXISTS picture")

    def load(self, *arguments, endpoint="http://127.0.0.1:9"):
        environment = {
            "HF_HOME": str(self.cache),
            "HF_ENDPOINT": endpoint,
            "HF_TOKEN": "",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
        }
        return run("load.py", *arguments, "--dsn", self.dsn, **environment)

    def assert_loaded(self, result, text, status=0):
        self.assertEqual(result[0], status, result)
        self.assertTrue(result[1].startswith(text), result)

    def rows(self):
        return self.query("SELECT source, name, labels, image FROM picture ORDER BY id")


class LocalDatasets(DatasetTest):
    def test_imagefolder_with_classes(self):
        for number, split in enumerate(["train", "train", "test"]):
            for label in ("cat", "dog"):
                file = self.folder / "set" / split / label / f"{label}{number}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(drawn(10 * number + (label == "dog")))
        base = self.folder / "set"
        self.assert_loaded(self.load("dataset", base, "--split", "train"), "4 added")
        train = f"{base}/default/train"
        expected = [
            (train, f"{label}{number}.jpg", {"label": label}, drawn(10 * number + (label == "dog")))
            for label in ("cat", "dog")
            for number in (0, 1)
        ]
        self.assertEqual(self.rows(), expected)
        # Without a split all of them; what is there stays.
        self.assert_loaded(self.load("dataset", base), "2 added, 4 were there, 0 have")
        self.assertEqual(self.rows()[:4], expected)
        self.assertEqual({row[0] for row in self.rows()[4:]}, {f"{base}/default/test"})

    def test_imagefolder_with_metadata(self):
        base = self.folder / "set"
        base.mkdir()
        for number in range(3):
            (base / f"{number}.jpg").write_bytes(drawn(number))
        (base / "2.jpg").write_bytes(b"broken")
        lines = [{"file_name": f"{n}.jpg", "price": n + 0.5, "tags": ["a", "b"]} for n in range(3)]
        (base / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
        result = self.load("dataset", base)
        self.assert_loaded(
            result, "2 added, 0 were there, 0 have the content of another, 1 unreadable", 1
        )
        self.assertRegex(result[2], r"(?m)^unreadable: \S+/default/train 2\.jpg: not a picture")
        labels = [{"price": n + 0.5, "tags": ["a", "b"]} for n in range(2)]
        self.assertEqual([row[2] for row in self.rows()], labels)

    def test_parquet_with_classes_in_boxes(self):
        """Classes are named at any depth, and what JSON cannot hold is null."""
        data = {
            "image": [{"bytes": drawn(n), "path": None} for n in range(2)],
            "image_id": [7, None],
            "objects": [
                {"category": [1, 0], "bbox": [[0.5, 1.0], [float("nan"), 2.0]]},
                {"category": [], "bbox": []},
            ],
        }
        base = self.folder / "boxes"
        base.mkdir()
        Dataset.from_dict(data, BOXES).to_parquet(base / "train.parquet")
        self.assert_loaded(self.load("dataset", base, "--split", "train"), "2 added")
        labels = [
            {
                "image_id": 7,
                "objects": {"category": ["plane", "helmet"], "bbox": [[0.5, 1.0], [None, 2.0]]},
            },
            {"image_id": None, "objects": {"category": [], "bbox": []}},
        ]
        source = f"{base}/default/train"
        expected = [(source, str(n), labels[n], drawn(n)) for n in range(2)]
        self.assertEqual(self.rows(), expected)

    def test_plain_parquet_needs_the_column(self):
        base = self.folder / "plain"
        base.mkdir()
        table = pa.table({"photo": [drawn(1), None, b"x"], "title": ["nul\0l", "none", "broken"]})
        pq.write_table(table, base / "part.parquet")
        status, _, errors = self.load("dataset", base)
        self.assertEqual(status, 1)
        self.assertIn("--column chooses one of photo, title", errors)
        result = self.load("dataset", base, "--column", "photo")
        self.assert_loaded(
            result, "1 added, 0 were there, 0 have the content of another, 2 unreadable", 1
        )
        self.assertIn("train 1: the row has no picture", result[2])
        self.assertEqual([row[1:] for row in self.rows()], [("0", {"title": "null"}, drawn(1))])
        self.assertEqual(self.load("dataset", base, "--column", "picture")[0], 1)

    def test_several_columns_of_pictures(self):
        base = self.folder / "pairs"
        base.mkdir()
        columns = {"left": [{"bytes": drawn(1)}], "right": [{"bytes": drawn(2)}], "n": [5]}
        features = Features({"left": Image(), "right": Image(), "n": Value("int8")})
        Dataset.from_dict(columns, features).to_parquet(base / "train.parquet")
        status, _, errors = self.load("dataset", base)
        self.assertEqual(status, 1)
        self.assertIn("choose one of left, right by --column", errors)
        self.assert_loaded(self.load("dataset", base, "--column", "right"), "1 added")
        # The other pictures are no labels.
        self.assertEqual([row[2:] for row in self.rows()], [({"n": 5}, drawn(2))])


def parquet(first, count):
    """Drawn pictures as the bytes of a parquet file."""
    target = io.BytesIO()
    pictures = [{"bytes": drawn(first + n), "path": f"{first + n}.jpg"} for n in range(count)]
    data = {"image": pictures, "label": [n % 2 for n in range(count)]}
    Dataset.from_dict(data, PICTURES).to_parquet(target)
    return target.getvalue()


def with_script(name, files):
    """A repository that has but a script, and the hub's conversion of its data set."""
    script = {f"{name}.py": b"raise SystemExit('must not run')", "README.md": b"# A data set\n"}
    return {"main": script, "refs/convert/parquet": {".gitattributes": b"", **files}}


def card(split):
    """A card that says where the split lies, as push_to_hub writes it."""
    return (
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        f"  - split: {split}\n    path: data/{split}-*\n---\n"
    ).encode()


def hub_of_presets():
    """Each preset's repository in the layout of its like; other parts of it hold other pictures."""
    other = parquet(900, 1)
    return {
        "detection-datasets/fashionpedia": {
            "main": {
                "README.md": card("val"),
                "data/val-00000-of-00002-abc.parquet": parquet(100, 1),
                "data/val-00001-of-00002-def.parquet": parquet(101, 1),
                "data/train-00000-of-00001.parquet": other,
            }
        },
        "keremberke/nfl-object-detection": with_script(
            "nfl-object-detection",
            {
                "mini/test/0000.parquet": parquet(200, 1),
                "mini/train/0000.parquet": other,
                "full/test/0000.parquet": other,
            },
        ),
        "keremberke/plane-detection": with_script(
            "plane-detection",
            {"mini/train/0000.parquet": parquet(300, 1), "full/train/0000.parquet": other},
        ),
        "Matthijs/snacks": with_script(
            "snacks",
            {
                "default/validation/0000.parquet": parquet(400, 1),
                "default/validation/0001.parquet": parquet(401, 1),
                "default/test/0000.parquet": other,
            },
        ),
        "rokmr/mini_pets": {
            "main": {
                "data/test-00000-of-00001.parquet": parquet(500, 2),
                "data/train-00000-of-00001.parquet": other,
            }
        },
        "keremberke/pokemon-classification": with_script(
            "pokemon-classification",
            {
                "mini/train/0000.parquet": parquet(600, 1),
                "mini/test/0000.parquet": other,
                "full/partial-train/0000.parquet": other,
            },
        ),
        "someone/unconverted": {"main": {"unconverted.py": b""}},
    }


class Hub(DatasetTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.hub = FakeHub(hub_of_presets())
        cls.addClassCleanup(cls.hub.stop)

    def load(self, *arguments):
        return super().load(*arguments, endpoint=self.hub.endpoint)

    def test_all_presets(self):
        self.assert_loaded(self.load("preset"), "9 added, 0 were there, 0 have")
        expected = [
            (
                f"hf://{path}/{part}",
                f"{first + n}.jpg",
                {"label": ["cat", "dog"][label]},
                drawn(first + n),
            )
            for path, part, first, labels in [
                ("detection-datasets/fashionpedia", "default/val", 100, (0, 0)),
                ("keremberke/nfl-object-detection", "mini/test", 200, (0,)),
                ("keremberke/plane-detection", "mini/train", 300, (0,)),
                ("Matthijs/snacks", "default/validation", 400, (0, 0)),
                ("rokmr/mini_pets", "default/test", 500, (0, 1)),
                ("keremberke/pokemon-classification", "mini/train", 600, (0,)),
            ]
            for n, label in enumerate(labels)
        ]
        self.assertEqual(self.rows(), expected)
        self.assert_loaded(self.load("preset", "pets", "snacks"), "0 added, 4 were there, 0 have")

    def test_data_set_by_name(self):
        pokemon = ("dataset", "keremberke/pokemon-classification")
        # All splits of the one configuration; of large ones the part that the hub has converted.
        result = self.load(*pokemon, "--config", "full")
        self.assert_loaded(result, "1 added")
        self.assertIn(
            "pokemon-classification, full, train the hub has converted the first", result[2]
        )
        self.assertEqual(self.rows()[0][0], "hf://keremberke/pokemon-classification/full/train")
        self.assert_loaded(
            self.load("dataset", "rokmr/mini_pets", "--revision", "main"), "2 added, 0 were"
        )

    def test_what_is_not_there(self):
        for arguments, message in [
            (
                ("keremberke/pokemon-classification",),
                "has no configuration default, only full, mini",
            ),
            (
                ("keremberke/plane-detection", "--config", "mini", "--split", "dev"),
                "no split dev, only train",
            ),
            (("someone/unconverted",), "needs a script, which is no longer run"),
            (("someone/absent",), "cannot open the data set someone/absent"),
            (("rokmr/mini_pets", "--split", "dev"), "cannot open the data set rokmr/mini_pets"),
        ]:
            with self.subTest(arguments):
                status, _, errors = self.load("dataset", *arguments)
                self.assertEqual(status, 1)
                self.assertIn(message, errors)
                self.assertNotIn("Traceback", errors)
        status, _, errors = self.load("preset", "snakes")
        self.assertEqual(status, 1)
        self.assertIn(
            "no preset snakes, only fashionpedia, nfl, planes, snacks, pets, pokemon", errors
        )


if __name__ == "__main__":
    unittest.main()
