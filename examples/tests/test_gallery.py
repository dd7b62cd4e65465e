"""The gallery in a headless Chromium, over pictures that are drawn, described and embedded here.

Screenshots go to the folder PG_SIGHT_SCREENSHOTS, by default pg_sight-gallery among the
temporary files.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from browser import Browser
from cluster import REPO, DatabaseTest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

sys.path.insert(0, str(REPO / "tools" / "demo"))

from draw import Product, catalogue_entry, picture_bytes  # noqa: E402

SCREENSHOTS = Path(
    os.environ.get("PG_SIGHT_SCREENSHOTS") or Path(tempfile.gettempdir()) / "pg_sight-gallery"
)
SIZE = (320, 240)
# Some red sneakers, and all sorts of things.
PRODUCTS = [
    *(Product.sample(seed, "sneaker", "red") for seed in range(4)),
    *(Product.sample(seed, "sneaker", "blue") for seed in range(4, 8)),
    Product.sample(8, "mug", "green"),
    *(Product.sample(seed) for seed in range(9, 60)),
]
SEARCH = "red sneakers"


class Gallery:
    """A gallery that runs; `address` is its page's."""

    def __init__(self, *options, environment=None):
        self._folder = tempfile.TemporaryDirectory()
        command = [sys.executable, REPO / "examples" / "gallery.py", "--port", "0", *options]
        # Of lost connections, which the tests see to, the pool tells at length.
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env={**os.environ, "TMPDIR": self._folder.name, **(environment or {})},
        )  # fmt: skip
        said = self._process.stdout.readline()
        found = re.fullmatch(r"Gallery: (http://127\.0\.0\.1:\d+)\n", said)
        if found is None:
            self.stop()
            raise RuntimeError(f"the gallery said {said!r}")
        self.address = found[1]

    def stop(self):
        self._process.terminate()
        self._process.wait(20)
        self._process.stdout.close()
        self._log.seek(0)
        log = self._log.read()
        self._log.close()
        left = os.listdir(self._folder.name)
        self._folder.cleanup()
        if self._process.returncode != 0 or left:
            raise RuntimeError(
                f"the gallery ended with {self._process.returncode}, left {left} and said {log}"
            )


class GalleryTest(DatabaseTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        with cls.connect() as connection:
            cls.fill(connection)
        cls.gallery = Gallery("--dsn", cls.dsn, "--example", SEARCH)
        cls.addClassCleanup(cls.gallery.stop)
        cls.browser = Browser()
        cls.addClassCleanup(cls.browser.quit)

    @classmethod
    def fill(cls, connection):
        connection.execute("""
            CREATE TABLE product (
                id bigserial PRIMARY KEY, image bytea, description text, desc_vec vector(384),
                category text, colour text, price numeric(10, 2));
            CREATE TRIGGER describe BEFORE INSERT OR UPDATE OF image ON product
                FOR EACH ROW EXECUTE FUNCTION sight_describe_trigger('image', 'description', 'desc_vec')
            """)
        entries = [catalogue_entry(product) for product in PRODUCTS]
        columns = [[entry[name] for entry in entries] for name in ("category", "colour", "price")]
        connection.execute(
            """
            INSERT INTO product (image, category, colour, price)
            SELECT image, category, colour, price
            FROM unnest(%b::bytea[], %t::text[], %t::text[], %t::numeric[])
                WITH ORDINALITY AS drawn (image, category, colour, price, place) ORDER BY place""",
            [[picture_bytes(product, SIZE) for product in PRODUCTS], *columns],
        )
        connection.execute("""
            CREATE INDEX product_desc_vec_idx ON product USING faiss_ivf (desc_vec vector_ip_ops);
            CREATE INDEX product_words_idx ON product USING gin (to_tsvector('english', description));
            ANALYZE product""")

    def setUp(self):
        self.browser.open(self.gallery.address)

    def screenshot(self, name):
        self.browser.screenshot(SCREENSHOTS / f"{name}.png")

    def psql(self, statement):
        """First columns of what psql prints for the SQL that the page shows."""
        command = [self.cluster.bin / "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]
        done = subprocess.run(
            [*command, "-d", self.dsn],
            input=statement,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return [line.split("|")[0] for line in done.stdout.splitlines()]

    def assert_searched(self, cards):
        """That scores descend, and that the SQL which the page offers gives the same pictures."""
        scores = [card.score for card in cards]
        self.assertEqual(scores, sorted(scores, reverse=True))
        self.assertGreater(scores[0], scores[-1])
        self.assertEqual(self.psql(self.browser.copied_sql()), [card.id for card in cards])
        self.assertRegex(self.browser.headline(), r"\d+\.\d ms")

    def test_the_newest_pictures_are_there_at_first(self):
        cards = self.browser.cards()
        self.assertEqual([card.id for card in cards], [str(60 - n) for n in range(24)])
        self.assertIn("Newest", self.browser.headline())
        self.assertEqual(self.browser.broken_pictures(), [])
        self.screenshot("newest")
        self.browser.show_more()
        self.assertEqual(len(self.browser.cards()), 48)

    def test_a_text_finds_what_it_says(self):
        cards = self.browser.search(SEARCH)
        for card in cards[:4]:
            self.assertRegex(card.caption, "red.* sneaker")
            self.assertIn(f"({SEARCH!r})", self.browser.sql())
        self.assert_searched(cards)
        self.assertIn("product_desc_vec_idx", self.browser.headline())
        self.assertIn("Index Scan using product_desc_vec_idx", self.browser.plan())
        self.assertEqual(self.browser.broken_pictures(), [])
        self.screenshot("search")

    def test_an_example_is_searched(self):
        self.assertEqual(
            [card.id for card in self.browser.example(SEARCH)],
            [card.id for card in self.browser.search(SEARCH)],
        )

    def test_hybrid_search_uses_words_too(self):
        self.browser.search(SEARCH)
        cards = self.browser.mode("hybrid")
        for card in cards[:4]:
            self.assertRegex(card.caption, "red.* sneaker")
        self.assert_searched(cards)
        # First in both lists.
        self.assertAlmostEqual(cards[0].score, 2 / 61, delta=2 / 61 - 2 / 64)
        self.assertIn("websearch_to_tsquery", self.browser.sql())
        self.screenshot("hybrid")

    def test_filters_take_away_the_others(self):
        self.browser.search(SEARCH)
        cards = self.browser.choose("category", "sneaker")
        sneakers = sum(product.category == "sneaker" for product in PRODUCTS)
        self.assertEqual({card.facts[0] for card in cards}, {"sneaker"})
        self.assertEqual(len(cards), sneakers)
        self.assert_searched(cards)
        cards = self.browser.choose("colour", "blue")
        self.assertEqual({tuple(card.facts[:2]) for card in cards}, {("sneaker", "blue")})
        self.assert_searched(cards)
        prices = sorted(float(card.facts[2]) for card in cards)
        cards = self.browser.at_most("price", int(prices[1]) + 1)
        self.assertEqual(sorted(float(card.facts[2]) for card in cards), prices[:2])
        self.assert_searched(cards)
        self.screenshot("filters")

    def test_a_filter_that_nothing_passes_says_so(self):
        self.browser.search(SEARCH)
        low = min(float(catalogue_entry(product)["price"]) for product in PRODUCTS)
        self.browser.at_most("price", int(low))
        self.assertIn("Nothing found", self.browser.note())
        self.screenshot("nothing")

    def test_a_click_finds_more_like_it(self):
        clicked = self.browser.search(SEARCH)[0]
        cards = self.browser.click(clicked)
        self.assertIn(clicked.caption, self.browser.headline())
        self.assertNotIn(clicked.id, [card.id for card in cards])
        # Those of the same description come first, and then what is like it.
        self.assertIn("sneaker", cards[0].caption)
        self.assert_searched(cards)
        self.assertEqual(self.browser.broken_pictures(), [])
        self.screenshot("more-like-this")
        self.assertIn("Newest", self.browser.back())

    def test_an_uploaded_picture_is_described_and_searched(self):
        product = Product.sample(70, "mug", "green", "plain", "white")
        picture = Path(self.enterContext(tempfile.TemporaryDirectory()), "mug.jpg")
        picture.write_bytes(picture_bytes(product, (480, 360)))
        self.browser.search(SEARCH)
        cards = self.browser.upload(picture)
        ((described,),) = self.query("SELECT blip_describe(%b)", [picture.read_bytes()])
        self.assertIn("green mug", described)
        self.assertIn(described, self.browser.headline())
        self.assertIn("mug", cards[0].caption)
        self.assert_searched(cards)
        self.assertEqual(self.browser.broken_pictures(), [])
        self.screenshot("uploaded")

    def test_what_is_no_picture_is_refused_in_words(self):
        nothing = Path(self.enterContext(tempfile.TemporaryDirectory()), "nothing.png")
        nothing.write_bytes(b"This is no picture at all.")
        error = self.browser.upload_refused(nothing)
        self.assertIn("image cannot be decoded", error)
        self.assertIn("PS020", error)
        self.screenshot("no-picture")

    def test_an_error_of_postgresql_is_shown_and_goes_away(self):
        with self.connect() as connection:
            connection.execute("ALTER TABLE product RENAME TO elsewhere")
            self.addCleanup(self.run_sql, "ALTER TABLE IF EXISTS elsewhere RENAME TO product")
            error = self.browser.search_failing(SEARCH)
            self.assertIn('relation "product" does not exist', error)
            self.assertIn("42P01", error)
            self.screenshot("error")
            connection.execute("ALTER TABLE elsewhere RENAME TO product")
        self.assertEqual(len(self.browser.search(SEARCH)), 24)

    def run_sql(self, statement):
        with self.connect() as connection:
            connection.execute(statement)

    def test_a_database_that_is_away_is_named_and_found_again(self):
        self.allow_connections("false")
        self.addCleanup(self.allow_connections, "true")
        error = self.browser.search_failing(SEARCH)
        self.assertIn("PostgreSQL cannot be reached", error)
        self.assertIn("not currently accepting connections", error)
        self.screenshot("away")
        self.allow_connections("true")
        self.assertEqual(len(self.browser.search(SEARCH)), 24)

    def allow_connections(self, allowed):
        """Whether the database takes connections; those that are there end."""
        name = conninfo_to_dict(self.dsn)["dbname"]
        with psycopg.connect(self.cluster.dsn("postgres"), autocommit=True) as connection:
            connection.execute(
                sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(
                    sql.Identifier(name), sql.SQL(allowed)
                )
            )
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
            )

    def test_descriptions_are_no_markup(self):
        text = "<img src=x onerror=\"document.title='bad'\"> red sneakers <b>&amp; ${7*7} {{value}}"
        with self.connect() as connection:
            ((key,),) = connection.execute(
                "INSERT INTO product (description) VALUES (%s) RETURNING id", [text]
            ).fetchall()
            self.addCleanup(self.run_sql, f"DELETE FROM product WHERE id = {key}")
        (card,) = [card for card in self.browser.search(SEARCH) if card.id == str(key)]
        self.assertEqual(card.caption, text)
        self.browser.click(card)
        self.assertIn(text, self.browser.headline())
        self.assertEqual(self.browser.title(), "pg_sight gallery")

    def test_texts_are_quoted(self):
        for text in ["it's", "'; DROP TABLE product; --", "100% {wool} \\ \\'", '$1 %s ${x} {0} "']:
            with self.subTest(text):
                self.assert_searched(self.browser.search(text))
                self.assertIn(text, self.browser.headline())

    def test_it_opens_in_the_browser_of_a_desktop(self):
        with tempfile.TemporaryDirectory() as folder:
            program, told = Path(folder) / "browser", Path(folder) / "told"
            program.write_text(f'#!/bin/sh\necho "$1" >{told}.new && mv {told}.new {told}\n')
            program.chmod(0o755)
            environment = {"BROWSER": str(program), "DISPLAY": ":99"}
            gallery = Gallery("--dsn", self.dsn, "--open", environment=environment)
            try:
                deadline = time.monotonic() + 20
                while not told.exists() and time.monotonic() < deadline:
                    time.sleep(0.05)
                self.assertEqual(told.read_text(), f"{gallery.address}\n")
            finally:
                gallery.stop()

    def test_dark_and_narrow(self):
        self.browser.open(f"{self.gallery.address}/?__theme=dark")
        self.browser.search(SEARCH)
        self.screenshot("dark")
        with self.browser.narrow():
            self.assertLessEqual(self.browser.page_width(), 420)
            self.screenshot("narrow")

    def test_no_other_host_is_asked(self):
        self.browser.requested()
        self.browser.complaints()
        self.browser.open(self.gallery.address)
        self.browser.search(SEARCH)
        asked = {urlsplit(address).netloc for address in self.browser.requested()}
        self.assertEqual(asked, {urlsplit(self.gallery.address).netloc})
        self.assertEqual(self.browser.complaints(), [])


if __name__ == "__main__":
    unittest.main()
