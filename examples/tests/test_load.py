"""Loading pictures: folders, the table, cut-offs, duplicates and broken files."""

import hashlib
import io
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from cluster import DIMENSIONS, DatabaseTest
from PIL import Image
from support import caption, command, drawn, run


class LoadTest(DatabaseTest):
    """A folder for pictures, and a fresh table for each test."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        with self.connect() as connection:
            connection.execute("DROP TABLE IF EXISTS picture")

    def write(self, name, data):
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return file

    def load(self, *arguments):
        return run("load.py", "folder", self.folder, "--dsn", self.dsn, *arguments)

    def assert_loaded(self, result, text, status=0):
        """The loader's exit status and the beginning of its last words."""
        self.assertEqual(result[0], status, result)
        self.assertTrue(result[1].startswith(text), result)

    def stored(self):
        """The content of the table by name."""
        return dict(self.query("SELECT name, image FROM picture"))


class Folders(LoadTest):
    def test_bytes_labels_and_hashes_are_kept(self):
        self.write("shoes/red/1.jpg", drawn(1))
        self.write("2.JPEG", drawn(2))
        self.write("notes.txt", b"no picture")
        self.write(".hidden.jpg", b"nor this")
        self.assert_loaded(
            self.load(), "2 added, 0 were there, 0 have the content of another, 0 unr"
        )
        rows = self.query(
            "SELECT name, labels, image, sha256, source, description FROM picture ORDER BY id"
        )
        sha256 = [hashlib.sha256(drawn(number)).digest() for number in (1, 2)]
        source = str(self.folder.resolve())
        expected = [
            ("2.JPEG", {}, drawn(2), sha256[1], source, None),
            ("shoes/red/1.jpg", {"label": "red"}, drawn(1), sha256[0], source, None),
        ]
        self.assertEqual(rows, expected)
        kind = (
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = 'picture'::regclass AND attname = 'desc_vec'"
        )
        self.assertEqual(self.query(kind), [(f"vector({DIMENSIONS})",)])

    def test_again_adds_what_is_new(self):
        self.write("1.jpg", drawn(1))
        self.load()
        self.write("2.jpg", drawn(2))
        self.assert_loaded(self.load(), "1 added, 1 were there, 0 have")
        self.assertEqual(self.stored(), {"1.jpg": drawn(1), "2.jpg": drawn(2)})

    def test_one_content_is_stored_once(self):
        for name in ("a.jpg", "b.jpg", "c/a.jpg"):
            self.write(name, drawn(1))
        self.write("d.jpg", drawn(2))
        self.assert_loaded(
            self.load("--batch", 2), "2 added, 0 were there, 2 have the content of another"
        )
        self.assert_loaded(self.load(), "0 added, 2 were there, 2 have the content of another")
        self.assertEqual(self.stored(), {"a.jpg": drawn(1), "d.jpg": drawn(2)})

    def test_unreadable_files_are_named_and_the_others_loaded(self):
        self.write("1.jpg", drawn(1))
        self.write("cut.jpg", drawn(2)[: len(drawn(2)) // 2])
        self.write("empty.png", b"")
        self.write("text.gif", b"This is no GIF.")
        (self.folder / "gone.jpg").symlink_to("nowhere.jpg")
        ico = io.BytesIO()
        Image.new("RGB", (16, 16)).save(ico, "ICO")
        self.write("icon.bmp", ico.getvalue())
        result = self.load()
        self.assert_loaded(
            result, "1 added, 0 were there, 0 have the content of another, 5 unreadable", 1
        )
        for name in ("cut.jpg", "empty.png", "text.gif", "gone.jpg", "icon.bmp"):
            self.assertRegex(result[2], rf"(?m)^unreadable: \S+ {name}: \w+")
        # By its header the half of a JPEG is a picture.
        self.assert_loaded(
            self.load("--headers-only"),
            "1 added, 1 were there, 0 have the content of another, 4",
            1,
        )

    def test_limits_are_those_of_the_database(self):
        self.write("1.jpg", drawn(1))
        large = io.BytesIO()
        Image.new("1", (600, 600)).save(large, "PNG")
        self.write("large.png", large.getvalue())
        self.write("long.jpg", drawn(2) + bytes(100_000))
        options = "-c pg_sight.max_image_pixels=300000 -c pg_sight.max_image_size=64kB"
        result = self.load("--dsn", f"{self.dsn} options='{options}'")
        self.assert_loaded(result, "1 added", 1)
        self.assertIn("large.png: 360,000 pixels; pg_sight.max_image_pixels is 300,000", result[2])
        self.assertRegex(result[2], r"long\.jpg: \d+,\d+ bytes; pg_sight\.max_image_size is 65,536")

    def test_names_that_are_no_utf8(self):
        name = b"caf\xe9.jpg".decode(errors="surrogateescape")
        self.write(name, drawn(1))
        self.assert_loaded(self.load(), "1 added")
        self.assertEqual(list(self.stored()), ["caf\N{REPLACEMENT CHARACTER}.jpg"])


class Tables(LoadTest):
    def test_trigger_describes_while_loading(self):
        for number in range(4):
            self.write(f"{number}.jpg", drawn(number))
        self.assert_loaded(self.load("--trigger"), "4 added")
        rows = self.query(
            "SELECT name, description, vector_dims(desc_vec) FROM picture ORDER BY id"
        )
        described = [(name, text.replace(" - ", "-"), size) for name, text, size in rows]
        self.assertEqual(described, [(f"{n}.jpg", caption(n), DIMENSIONS) for n in range(4)])

    def test_what_the_trigger_refuses_is_named(self):
        for number in range(3):
            self.write(f"{number}.jpg", drawn(number))
        # Pillow reads the header only, and the database all.
        self.write("1b.jpg", drawn(9)[:-2000])
        result = self.load("--trigger", "--headers-only")
        self.assert_loaded(
            result, "3 added, 0 were there, 0 have the content of another, 1 unreadable", 1
        )
        self.assertRegex(result[2], r"(?m)^unreadable: \S+ 1b\.jpg: ")
        self.assertEqual(self.query("SELECT count(description) FROM picture"), [(3,)])

    def test_table_of_ones_own(self):
        self.write("1.jpg", drawn(1))
        with self.connect() as connection:
            connection.execute("CREATE SCHEMA IF NOT EXISTS shop")
            connection.execute(
                'CREATE TABLE shop."Product" (id serial, image bytea, price int DEFAULT 7)'
            )
        status, _, errors = self.load("--table", "shop.Product")
        self.assertEqual(status, 1)
        hint = errors.partition("lacks columns: ")[2]
        self.assertIn("ADD sha256 bytea UNIQUE", hint)
        with self.connect() as connection:
            connection.execute(hint)
        self.assert_loaded(self.load("--table", "shop.Product"), "1 added")
        self.assertEqual(self.query('SELECT image, price FROM shop."Product"'), [(drawn(1), 7)])

    def test_without_a_model_dimensions_are_asked_for(self):
        self.write("1.jpg", drawn(1))
        without = f"{self.dsn} options='-c pg_sight.embed_model=absent'"
        status, _, errors = self.load("--dsn", without)
        self.assertEqual(status, 1)
        self.assertIn("absent, is not registered", errors)
        self.assert_loaded(self.load("--dsn", without, "--dimensions", 5), "1 added")

    def test_no_server(self):
        status, _, errors = self.load("--dsn", "host=/nowhere")
        self.assertEqual(status, 1)
        self.assertTrue(errors.startswith("error: "), errors)


class CutOff(LoadTest):
    """The loader ended in its middle; a slow trigger makes that easy to hit."""

    COUNT = 60
    BATCH = 5

    def setUp(self):
        super().setUp()
        self.load()
        with self.connect() as connection:
            connection.execute("CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql"
                               " AS 'BEGIN PERFORM pg_sleep(0.02); RETURN NEW; END'")  # fmt: skip
            connection.execute(
                "CREATE TRIGGER slow BEFORE INSERT ON picture FOR EACH ROW EXECUTE FUNCTION slow()"
            )
        for number in range(self.COUNT):
            self.write(f"{number:03}.jpg", drawn(number))

    def cut_off(self, number):
        """Ends a loader in its middle by a signal; its exit status, output and errors."""
        arguments = command(
            "load.py", "folder", self.folder, "--dsn", self.dsn, "--batch", self.BATCH
        )
        loader = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # What runs in the background of a script ignores interrupts, and so would this.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        deadline = time.monotonic() + 60
        while self.count() < 2 * self.BATCH:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        loader.send_signal(number)
        output, errors = loader.communicate(timeout=60)
        return loader.returncode, output, errors

    def count(self):
        return self.query("SELECT count(*) FROM picture")[0][0]

    def assert_goes_on(self):
        """Whole batches are there, and the loader adds the rest, each picture once."""
        before = self.count()
        self.assertEqual(before % self.BATCH, 0)
        self.assertTrue(0 < before < self.COUNT, before)
        self.assert_loaded(self.load(), f"{self.COUNT - before} added, {before} were there, 0 have")
        expected = {f"{number:03}.jpg": drawn(number) for number in range(self.COUNT)}
        self.assertEqual(self.count(), self.COUNT)
        self.assertEqual(self.stored(), expected)

    def test_kill(self):
        status, _, _ = self.cut_off(signal.SIGKILL)
        self.assertEqual(status, -signal.SIGKILL)
        self.assert_goes_on()

    def test_interrupt_and_termination(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(number), self.connect() as connection:
                connection.execute("TRUNCATE picture")
                status, output, errors = self.cut_off(number)
                self.assertEqual(status, 130, errors)
                self.assertNotIn("Traceback", errors)
                self.assertIn("goes on from here", errors)
                self.assertTrue(output.startswith(f"{self.count()} added"), output)
                self.assert_goes_on()


if __name__ == "__main__":
    unittest.main()
