"""The gallery without a browser: tables of all sorts, statements, errors, pictures."""

import argparse
import io
import sys
import uuid
from unittest import mock

import psycopg
from cluster import REPO, DatabaseTest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from psycopg import sql

sys.path.insert(0, str(REPO / "examples"))

from gallery_app import catalog, pictures, statements  # noqa: E402
from gallery_app.catalog import CatalogError, Choices, Limit  # noqa: E402
from gallery_app.database import Database, Problem  # noqa: E402
from gallery_app.statements import HYBRID, VECTOR, Request  # noqa: E402

DEFAULTS = {
    "table": "product", "id": "id", "image": "image", "description": "description",
    "vector": "desc_vec", "filter": None, "text_config": "english",
}  # fmt: skip
CAPTIONS = ["a red mug", "a blue mug", "a red sofa", "a green lamp", "a blue hat", "two red hats"]


class PartsTest(DatabaseTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.database = cls.enterClassContext(Database(cls.dsn, 2, 5))
        with cls.connect() as connection:
            connection.execute("""
                CREATE SCHEMA "My shop";
                CREATE TABLE product (
                    id bigserial PRIMARY KEY, image bytea, description text, desc_vec vector(384),
                    kind text, stock int, weight real, sold boolean, score int, note text,
                    extra point)""")
            for number, caption in enumerate(CAPTIONS):
                connection.execute(
                    "INSERT INTO product (description, desc_vec, kind, stock, weight, sold, score, note)"
                    " VALUES (%s, embed(%s), %s, %s, %s, %s, 1, %s)",
                    [
                        caption,
                        caption,
                        caption.split()[-1],
                        number,
                        number / 2,
                        number > 2,
                        str(uuid.uuid4()),
                    ],
                )
            connection.execute("UPDATE product SET weight = 'NaN' WHERE stock = 0")

    def read(self, **options):
        with self.connect() as connection:
            return catalog.read(connection, argparse.Namespace(**{**DEFAULTS, **options}))

    def search(self, found, **request):
        request = Request(**request)
        return self.database.search(
            statements.build(found, request), statements.order(found, request)
        )

    def test_filters_are_the_columns_that_suit(self):
        self.assertEqual(
            self.read().filters,
            [
                Choices("kind", "kind", ["hat", "hats", "lamp", "mug", "sofa"]),
                Limit("stock", "stock", 0, 5),
                Limit("weight", "weight", 0.5, 2.5),
                Choices("sold", "sold", [False, True]),
                Choices("note", "note", self.notes()),
            ],
        )

    def notes(self):
        return [note for (note,) in self.query("SELECT note FROM product ORDER BY 1")]

    def test_filters_can_be_named(self):
        self.assertEqual(
            [one.title for one in self.read(filter=["stock", "kind"]).filters], ["stock", "kind"]
        )
        with self.assertRaisesRegex(CatalogError, 'no column "size"'):
            self.read(filter=["size"])
        with self.assertRaisesRegex(CatalogError, '"extra" of table product is point'):
            self.read(filter=["extra"])
        for name in "image", "score":
            with self.assertRaisesRegex(CatalogError, f'"{name}" cannot be a filter'):
                self.read(filter=[name])

    def test_a_table_that_does_not_serve_is_refused(self):
        for options, message in [
            ({"table": "nowhere"}, 'no table "nowhere"'),
            ({"vector": "v"}, 'no column "v"; it has id, image, '),
            ({"vector": "description"}, "is text, not halfvec or vector"),
            ({"image": "description"}, "is text, not bytea"),
        ]:
            with self.subTest(options), self.assertRaisesRegex(CatalogError, message):
                self.read(**options)

    def test_names_and_keys_of_any_kind(self):
        with self.connect() as connection:
            connection.execute("""
                CREATE TABLE "My shop"."The ""old"" pictures" AS
                SELECT gen_random_uuid() AS "Key", NULL::bytea AS "Image", description AS "order",
                       desc_vec::halfvec(384) AS "V{}", kind AS "Kind %s" FROM product;
                CREATE INDEX ON "My shop"."The ""old"" pictures" USING faiss_ivf ("V{}" halfvec_cosine_ops)""")
        found = self.read(
            table='"My shop"."The ""old"" pictures"', id="Key", image="Image", description="order", vector="V{}",
        )  # fmt: skip
        self.assertEqual(found.operator, "<=>")
        for mode in VECTOR, HYBRID:
            rows = self.search(found, text="a red mug", mode=mode, chosen=[["mug", "sofa"]]).rows
            self.assertEqual([row[1] for row in rows][0], "a red mug")
            self.assertEqual({row[2] for row in rows}, {"mug", "sofa"})
        like = self.search(found, like=found.key(str(rows[0][0]))).rows
        self.assertNotIn(rows[0][0], [row[0] for row in like])
        self.assertEqual(self.search(found).rows[0][-1], None)

    def test_each_measure_gives_descending_scores(self):
        for ops, operator in [("ip", "<#>"), ("l2", "<->"), ("cosine", "<=>")]:
            with self.subTest(ops), self.connect() as connection:
                connection.execute(
                    f"CREATE INDEX measured ON product USING faiss_ivf (desc_vec vector_{ops}_ops)"
                )
                found = self.read()
                connection.execute("DROP INDEX measured")
                self.assertEqual(found.operator, operator)
                rows = self.search(found, text="a blue hat", chosen=[["mug", "hat"]]).rows
                scores = [row[-1] for row in rows]
                self.assertEqual(rows[0][1], "a blue hat")
                self.assertEqual(scores, sorted(scores, reverse=True))

    def test_words_are_matched_as_they_are_indexed(self):
        self.assertEqual(self.read().words, "to_tsvector('english', \"description\")")
        with self.connect() as connection:
            connection.execute(
                "CREATE INDEX words ON product USING gin (to_tsvector('simple', description))"
            )
            self.addCleanup(self.query_nothing, "DROP INDEX words")
        found = self.read()
        self.assertEqual(
            (found.words, found.text_config), ("to_tsvector('simple', description)", "simple")
        )
        answer = self.search(found, text="hats", mode=HYBRID)
        # In both lists, as the only one: "simple" knows no plural.
        self.assertEqual([row[1] for row in answer.rows if row[-1] > 2 / 62], ["two red hats"])

    def query_nothing(self, statement):
        with self.connect() as connection:
            connection.execute(statement)

    def test_a_filter_at_its_end_is_none(self):
        found = self.read(filter=["stock"])
        self.assertNotIn("WHERE", self.search(found, text="mug", chosen=[5]).statement)
        answer = self.search(found, text="mug", chosen=[2])
        self.assertIn("WHERE stock <= 2", answer.statement)
        self.assertTrue(
            answer.statement.startswith("SET faiss_ivf.iterative_scan = relaxed_order;")
        )
        self.assertEqual(sorted(row[2] for row in answer.rows), [0, 1, 2])

    def test_sessions_only_read(self):
        with self.assertRaises(Problem) as raised:
            self.database.search(sql.SQL("DELETE FROM product RETURNING id"), "strict_order")
        self.assertEqual(raised.exception.code, "25006")
        self.assertEqual(self.query("SELECT count(*) FROM product"), [(len(CAPTIONS),)])

    def test_a_statement_has_its_time(self):
        with Database(self.dsn, 1, 1) as database, self.assertRaises(Problem) as raised:
            database.search(sql.SQL("SELECT pg_sleep(20)"), "strict_order")
        self.assertIn("longer than 1 s", raised.exception.message)
        self.assertEqual(raised.exception.code, "57014")

    def test_after_a_long_outage_the_first_search_succeeds(self):
        dsn = self.cluster.database("outage")
        with (
            psycopg.connect(self.dsn, autocommit=True) as elsewhere,
            mock.patch("gallery_app.database.WAIT_S", 2.5),
            Database(dsn, 2, 5) as database,
            self.assertLogs("psycopg.pool", "WARNING"),
        ):
            self.assertEqual(database.fetch("SELECT 1"), [(1,)])
            elsewhere.execute("ALTER DATABASE outage ALLOW_CONNECTIONS false")
            elsewhere.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'outage'"
            )
            # So long that the pool's pauses would have grown beyond what a request waits: were it to
            # go on, its attempts would be after 7 and 15 seconds.
            for _ in range(4):
                with self.assertRaises(Problem) as raised:
                    database.fetch("SELECT 1")
                self.assertIn("cannot be reached", raised.exception.message)
            elsewhere.execute("ALTER DATABASE outage ALLOW_CONNECTIONS true")
            self.assertEqual(database.fetch("SELECT 2"), [(2,)])

    def test_errors_keep_detail_and_hint(self):
        with self.assertRaises(Problem) as raised:
            self.database.fetch("SELECT embed('x', 'no-such-model')")
        self.assertEqual(raised.exception.code, "PS010")
        self.assertIn("no-such-model", raised.exception.message)
        self.assertTrue(raised.exception.hint)

    def test_a_text_that_postgresql_cannot_hold_is_refused(self):
        with self.assertRaises(Problem) as raised:
            self.search(self.read(), text="a\0b")
        self.assertIn("NUL", raised.exception.message)

    def test_pictures_are_small_upright_and_kept_by_the_browser(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        key = self.insert(encoded(Image.new("RGB", (1200, 800), "red"), "JPEG", exif=exif))
        client = self.client()
        answer = client.get(f"/pictures/{key}")
        self.assertEqual((answer.status_code, answer.headers["content-type"]), (200, "image/webp"))
        with Image.open(io.BytesIO(answer.content)) as picture:
            self.assertEqual(picture.size, (373, 560))
        with Image.open(io.BytesIO(client.get(f"/pictures/{key}?size=large").content)) as picture:
            self.assertEqual(picture.size, (800, 1200))
        again = client.get(f"/pictures/{key}", headers={"If-None-Match": answer.headers["etag"]})
        self.assertEqual((again.status_code, again.content), (304, b""))
        self.insert(encoded(Image.new("RGB", (9, 9), "blue"), "PNG"), key)
        changed = client.get(f"/pictures/{key}", headers={"If-None-Match": answer.headers["etag"]})
        self.assertEqual(changed.status_code, 200)

    def test_what_is_no_picture_gets_a_stand_in(self):
        broken = self.insert(b"no picture")
        # Small in bytes, 400 million pixels when decoded.
        bomb = self.insert(encoded(Image.new("1", (20_000, 20_000)), "PNG"))
        for key, status in [
            (broken, 415),
            (bomb, 415),
            (1, 404),
            (10**9, 404),
            ("x", 404),
            (10**30, 404),
        ]:
            with self.subTest(key):
                answer = self.client().get(f"/pictures/{key}")
                self.assertEqual(answer.status_code, status)
                self.assertEqual(answer.headers["content-type"], "image/svg+xml")
        self.assertEqual(self.client().get(f"/pictures/{broken}?size=huge").status_code, 404)

    def test_the_cache_of_pictures_keeps_to_its_size(self):
        image = encoded(Image.effect_noise((300, 300), 50), "PNG")
        size = len(pictures.shrink(image, 100))
        thumbnails = pictures.Thumbnails(limit=int(2.5 * size))
        first = thumbnails.get("a", image, 100)
        for name in "bcd":
            thumbnails.get(name, image, 100)
        self.assertIs(thumbnails.get("d", b"not read", 100), thumbnails.get("d", b"not read", 100))
        self.assertIsNot(thumbnails.get("a", image, 100), first)

    def client(self):
        app = FastAPI()
        pictures.add_routes(app, self.read(filter=["stock"]), self.database)
        return TestClient(app)

    def insert(self, image, key=None):
        """Gives a row of its own, or the row `key`, a picture; returns the row's id."""
        if key is not None:
            self.query("UPDATE product SET image = %b WHERE id = %s RETURNING id", [image, key])
            return key
        ((key,),) = self.query("INSERT INTO product (image) VALUES (%b) RETURNING id", [image])
        self.addCleanup(self.query, "DELETE FROM product WHERE id = %s RETURNING id", [key])
        return key


def encoded(image, format, **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()
