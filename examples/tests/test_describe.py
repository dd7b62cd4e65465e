"""The pipeline's describing step, and description.csv."""

import csv
import json
import re
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from cluster import DIMENSIONS, DatabaseTest
from psycopg.types.json import Jsonb
from support import EXAMPLES, REPO, drawn

from loading.table import Picture, Table

PROMPTS = ["describe this image in full detail", "create an extensive description of this image"]
PIPELINE = {
    "num_beams": 10,
    "max_length": 512,
    "min_length": 16,
    "repetition_penalty": 1.5,
    "do_sample": False,
}
# The demo's captioner has 128 positions.
OPTIONS = {**PIPELINE, "max_length": 128}
OPTIONS_TEXT = json.dumps(OPTIONS)


class DescribeTest(DatabaseTest):
    def setUp(self):
        with self.connect() as connection:
            connection.execute("DROP TABLE IF EXISTS picture")

    def insert(self, count):
        """Inserts drawn pictures, without descriptions."""
        with self.connect() as connection:
            table = Table(connection, "picture")
            table.prepare()
            table.add(
                [Picture(bytes([n]), "test", str(n), None, {}, drawn(n)) for n in range(count)]
            )

    def psql(self, *arguments):
        return [str(self.cluster.bin / "psql"), "-X", "-d", self.dsn, *arguments]

    def script(self, *settings):
        file = str(EXAMPLES / "describe.sql")
        return self.psql(*(part for setting in settings for part in ("-v", setting)), "-f", file)

    def describe(self, *settings):
        done = subprocess.run(
            self.script(f"options={OPTIONS_TEXT}", *settings),
            capture_output=True,
            text=True,
            timeout=240,
        )
        return done.returncode, done.stderr

    def rows(self, columns):
        return self.query(f"SELECT {columns} FROM picture ORDER BY id")


class Describing(DescribeTest):
    def test_same_as_the_one_statement(self):
        self.insert(7)
        self.assertEqual(self.describe("batch=3")[0], 0)
        one = "SELECT blip_describe(image, %s::text[], options => %s) FROM picture ORDER BY id"
        self.assertEqual(self.rows("description"), self.query(one, [PROMPTS, Jsonb(OPTIONS)]))
        distances = self.rows("desc_vec <=> embed(description)")
        self.assertLess(max(distance for (distance,) in distances), 1e-5)

    def test_by_itself_it_does_what_the_pipeline_did(self):
        """InstructBLIP, and no setting but the model's name."""
        self.insert(3)
        fixture = REPO / "crates" / "models" / "tests" / "fixtures" / "instructblip" / "t"
        folder = self.cluster.copy_model(fixture, "instructblip")
        self.query("SELECT sight_model_register('instructblip', %s)", [str(folder)])
        done = subprocess.run(self.script("model=instructblip"), capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        one = "SELECT blip_describe(image, %s::text[], 'instructblip', %s) FROM picture ORDER BY id"
        expected = self.query(one, [PROMPTS, Jsonb(PIPELINE)])
        self.assertEqual(self.rows("description"), expected)
        readme = (REPO / "README.md").read_text()
        shown = re.search(r"^UPDATE picture SET description.*?;$", readme, re.M | re.S)[0]
        with self.connect() as connection:
            connection.execute("UPDATE picture SET description = NULL")
            connection.execute("SET pg_sight.describe_model = 'instructblip'")
            connection.execute(shown)
        self.assertEqual(self.rows("description"), expected)
        # Each of the options counts: the answers differ without it.
        for option in PIPELINE.keys() - {"do_sample", "max_length"}:
            others = {name: value for name, value in PIPELINE.items() if name != option}
            with self.subTest(option):
                self.assertNotEqual(self.query(one, [PROMPTS, Jsonb(others)]), expected)

    def test_what_is_there_stays(self):
        self.insert(4)
        vector = [1.0] + [0.0] * (DIMENSIONS - 1)
        with self.connect() as connection:
            connection.execute("UPDATE picture SET description = 'mine' WHERE name = '1'")
            connection.execute(
                "UPDATE picture SET description = 'done', desc_vec = %s::real[]::vector"
                " WHERE name = '2'",
                [vector],
            )
            connection.execute(
                "INSERT INTO picture (sha256, source, name, image) VALUES ('x', '', 'bad', 'none')"
            )
        status, errors = self.describe()
        self.assertEqual(status, 0, errors)
        self.assertRegex(errors, r"WARNING: +row \d+ is left without a description: ")
        found = self.rows("name, description, desc_vec::real[]")
        described = {name: text for name, text, _ in found}
        self.assertEqual((described["1"], described["2"], described["bad"]), ("mine", "done", None))
        self.assertTrue(described["0"] and described["3"])
        self.assertEqual([row[2] is None for row in found], [False] * 4 + [True])
        self.assertEqual(found[2][2], vector)
        own = "SELECT desc_vec <=> embed('mine') < 1e-5 FROM picture WHERE name = '1'"
        self.assertEqual(self.query(own), [(True,)])

    def test_prompts_model_and_table_by_settings(self):
        self.insert(1)
        with self.connect() as connection:
            connection.execute(
                'CREATE TABLE "Other" AS SELECT id, image, description, desc_vec FROM picture'
            )
        status, errors = self.describe("model=absent")
        self.assertEqual(status, 3, errors)
        self.assertIn('"absent"', errors)
        settings = ('prompts={"a photo of"}', "model=demo-captioner", 'table="Other"')
        self.assertEqual(self.describe(*settings)[0], 0)
        one = "SELECT blip_describe(image, 'a photo of', options => %s) FROM picture"
        self.assertEqual(
            self.query('SELECT description FROM "Other"'), self.query(one, [Jsonb(OPTIONS)])
        )
        self.assertEqual(self.rows("description"), [(None,)])

    def test_csv_by_copy(self):
        self.insert(2)
        with self.connect() as connection:
            connection.execute(
                "UPDATE picture SET description = 'a \"red\", old mug' WHERE name = '1'"
            )
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "description.csv"
            # The README shows this very command.
            copy = re.search(r'psql -c "(\\copy .*)"', (REPO / "README.md").read_text())[1]
            copy = copy.replace("description.csv", str(file))
            subprocess.run(self.psql("-q", "-c", copy), check=True)
            with file.open(newline="") as read:
                lines = list(csv.DictReader(read))
        self.assertEqual([line["description"] for line in lines], ["", 'a "red", old mug'])


class CutOff(DescribeTest):
    COUNT = 40

    def test_killed_session_goes_on(self):
        self.insert(self.COUNT)
        started = subprocess.Popen(
            self.script(f"options={OPTIONS_TEXT}", "batch=2"), stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while (before := self.count()) < 4:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)
        started.send_signal(signal.SIGKILL)
        started.wait()
        self.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'psql'"
        )
        while self.query("SELECT 1 FROM pg_stat_activity WHERE application_name = 'psql'"):
            time.sleep(0.02)
        before = self.query("SELECT id, description FROM picture WHERE description IS NOT NULL")
        self.assertLess(len(before), self.COUNT)
        self.assertEqual(len(before) % 2, 0)
        status, errors = self.describe()
        self.assertEqual(status, 0, errors)
        rest = self.COUNT - len(before)
        self.assertIn(f"described {rest} of {rest}", errors)
        after = self.query("SELECT id, description FROM picture WHERE desc_vec IS NOT NULL")
        self.assertEqual(len(after), self.COUNT)
        self.assertLessEqual(set(before), set(after))

    def count(self):
        return self.query("SELECT count(description) FROM picture")[0][0]

    def test_two_sessions_share_the_rows(self):
        self.insert(20)
        both = [
            subprocess.Popen(
                self.script(f"options={OPTIONS_TEXT}", "batch=2"), stderr=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        said = [session.communicate(timeout=240)[1] for session in both]
        self.assertEqual([session.returncode for session in both], [0, 0], said)
        done = [int(line.partition("described ")[2].split()[0])
                for text in said for line in text.splitlines() if "described" in line]  # fmt: skip
        self.assertEqual(sum(done), 20, said)
        self.assertEqual(self.query("SELECT count(desc_vec) FROM picture"), [(20,)])


if __name__ == "__main__":
    unittest.main()
