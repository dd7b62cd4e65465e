"""Loading pictures from S3: against moto's server on this machine."""

import io
import logging
import os
import unittest
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

import boto3
from botocore.exceptions import IncompleteReadError
from botocore.response import StreamingBody
from cluster import DatabaseTest
from moto.server import ThreadedMotoServer
from support import drawn, run

import load
from loading.s3 import S3Source

BUCKET = "catalogue"
# A line for each request is too much.
logging.getLogger("werkzeug").setLevel(logging.ERROR)


class S3(DatabaseTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        cls.addClassCleanup(server.stop)
        host, port = server.get_host_and_port()
        cls.environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "eu-central-1",
        }  # fmt: skip

    def setUp(self):
        patched = patch.dict(os.environ, self.environment)
        patched.start()
        self.addCleanup(patched.stop)
        self.bucket = boto3.resource("s3").Bucket(BUCKET)
        self.bucket.create(CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        self.addCleanup(self.remove)
        with self.connect() as connection:
            connection.execute("DROP TABLE IF EXISTS picture")

    def remove(self):
        self.bucket.objects.delete()
        self.bucket.delete()

    def put(self, objects):
        for key, data in objects.items():
            self.bucket.put_object(Key=key, Body=data)

    def load(self, prefix=""):
        """Loads in this process: exit status, output, errors, and the keys that were read."""
        output, errors, keys = io.StringIO(), io.StringIO(), []
        read = S3Source.read

        def counted(source, key):
            keys.append(key)
            return read(source, key)

        with (
            redirect_stdout(output),
            redirect_stderr(errors),
            patch.object(S3Source, "read", counted),
        ):
            status = load.main(["s3", f"s3://{BUCKET}/{prefix}", "--dsn", self.dsn])
        return status, output.getvalue(), errors.getvalue(), sorted(keys)

    def stored(self):
        return self.query("SELECT source, name, image FROM picture ORDER BY name, id")

    def test_prefix_and_suffixes(self):
        objects = {"a/1.jpg": drawn(1), "a/b/2.JPG": drawn(2), "a/plain": drawn(3)}
        left_out = {"other/4.jpg": drawn(4), "a/list.csv": b"1,2", "a/folder/": b""}
        self.put(objects | left_out)
        status, output, errors, _ = self.load("a/")
        self.assertEqual(status, 0, errors)
        self.assertTrue(output.startswith("3 added, 0 were there"), output)
        self.assertIn("0 unreadable, 1 files left out", output)
        source = f"s3://{BUCKET}/a/"
        self.assertEqual(self.stored(), [(source, *item) for item in objects.items()])

    def test_again_reads_only_what_is_new_or_changed(self):
        self.put({f"{n}.jpg": drawn(n) for n in range(3)})
        self.assertEqual(self.load()[3], ["0.jpg", "1.jpg", "2.jpg"])
        self.put({"1.jpg": drawn(11), "3.jpg": drawn(3), "4.jpg": drawn(0)})
        status, output, errors, keys = self.load()
        self.assertEqual((status, keys), (0, ["1.jpg", "3.jpg", "4.jpg"]), errors)
        self.assertTrue(
            output.startswith("2 added, 2 were there, 1 have the content of another"), output
        )
        # The old picture of a changed object stays: it is another picture.
        self.assertEqual([row[2] for row in self.stored()], [drawn(n) for n in (0, 1, 11, 2, 3)])

    def test_more_than_a_page(self):
        self.put({f"{number}.jpg": drawn(number) for number in range(7)})
        with patch.object(S3Source, "page_size", 3):
            status, output, errors, keys = self.load()
        self.assertEqual((status, len(keys)), (0, 7), errors)
        self.assertTrue(output.startswith("7 added, 0 were there, 0 have"), output)

    def load_broken(self, times):
        """Loads while a body ends too early for the first so many times."""
        read, left = StreamingBody.read, [times]

        def broken(body, *arguments, **options):
            left[0] -= 1
            if left[0] >= 0:
                raise IncompleteReadError(actual_bytes=1, expected_bytes=2)
            return read(body, *arguments, **options)

        with patch.object(StreamingBody, "read", broken):
            return self.load()

    def test_connection_that_breaks(self):
        """An object is asked for three times, and then the store is held for broken."""
        self.put({"1.jpg": drawn(1)})
        status, output, errors, _ = self.load_broken(3)
        self.assertEqual((status, output[:7]), (1, "0 added"), errors)
        self.assertIn(f"cannot read s3://{BUCKET}/1.jpg: ", errors)
        status, output, errors, _ = self.load_broken(2)
        self.assertEqual((status, output[:7]), (0, "1 added"), errors)

    def test_unreadable_objects(self):
        self.put({"good.jpg": drawn(1), "bad.jpg": b"no picture", "gone.jpg": drawn(2)})
        read = S3Source.read

        def late(source, key):
            if key == "gone.jpg":
                self.bucket.Object(key).delete()
            return read(source, key)

        with patch.object(S3Source, "read", late):
            status, output, errors, _ = self.load()
        self.assertEqual(status, 1)
        self.assertTrue(output.startswith("1 added"), output)
        self.assertIn("bad.jpg: not a picture", errors)
        self.assertRegex(errors, r"gone\.jpg: .*NoSuchKey")

    def test_as_a_program(self):
        self.put({"1.jpg": drawn(1)})
        endpoint = self.environment["AWS_ENDPOINT_URL"]
        arguments = ("load.py", "s3", f"s3://{BUCKET}", "--dsn", self.dsn)
        result = run(*arguments, "--endpoint-url", endpoint, AWS_ENDPOINT_URL="http://127.0.0.1:9")
        self.assertEqual(result[0], 0, result)
        self.assertEqual([row[2] for row in self.stored()], [drawn(1)])

    def test_what_is_not_there(self):
        for url, message in [
            ("s3://absent/x", "cannot list s3://absent/x: "),
            ("http://host/x", "is not of the form s3://bucket/prefix"),
        ]:
            errors = io.StringIO()
            with self.subTest(url), redirect_stderr(errors), redirect_stdout(io.StringIO()):
                self.assertEqual(load.main(["s3", url, "--dsn", self.dsn]), 1)
                self.assertIn(message, errors.getvalue())


if __name__ == "__main__":
    unittest.main()
