"""Pictures of the table as small WebP files, by the id of their row."""

import hashlib
import io
import threading
from collections import OrderedDict

from fastapi import Request, Response
from PIL import Image, ImageOps

from . import statements
from .database import Problem

# Edges in pixels: of the cards, twice what they show for dense screens, and of a picture opened alone.
SIZES = {"small": 560, "large": 1600}
CACHE_BYTES = 64 << 20
# A browser asks again after this time; a picture that is the same is not sent again.
MAX_AGE_S = 60

Image.MAX_IMAGE_PIXELS = 100_000_000

NO_PICTURE = b"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 120 120">
<rect width="120" height="120" fill="#88888822"/>
<path d="M30 84l20-26 14 16 10-12 16 22z M72 40a7 7 0 1 0 .1 0z" fill="#88888877"/></svg>"""


class Thumbnails:
    """A cache of small pictures, by what the large ones contain and by size."""

    def __init__(self, limit=CACHE_BYTES):
        self._limit = limit
        self._bytes = 0
        self._kept = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest, image, edge):
        """The picture, at most `edge` pixels wide and high, as WebP.

        Raises what Pillow raises where the bytes are no picture.
        """
        key = digest, edge
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = shrink(image, edge)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._bytes += len(made)
            while self._bytes > self._limit:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= len(oldest)
        return made


def shrink(image, edge):
    """The bytes of a picture as WebP, upright and at most `edge` pixels wide and high."""
    with Image.open(io.BytesIO(image)) as opened:
        opened.draft("RGB", (edge, edge))
        picture = ImageOps.exif_transpose(opened)
        picture.thumbnail((edge, edge))
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
        out = io.BytesIO()
        picture.save(out, "WEBP", quality=82, method=2)
        return out.getvalue()


def add_routes(app, catalog, database):
    """Adds `pictures/ID?size=small|large` to a FastAPI app."""
    thumbnails = Thumbnails()

    # No coroutine: it waits for PostgreSQL and computes, so it belongs in a thread.
    @app.get("/pictures/{key}", include_in_schema=False)
    def picture(request: Request, key: str, size: str = "small"):
        if size not in SIZES:
            return no_picture(404)
        try:
            rows = database.fetch(statements.picture(catalog, catalog.key(key)))
        except ValueError:
            return no_picture(404)
        except Problem:
            return no_picture(503)
        if not rows or rows[0][0] is None:
            return no_picture(404)
        image = rows[0][0]
        digest = hashlib.blake2b(image, digest_size=16).hexdigest()
        headers = {"ETag": f'"{digest}-{size}"', "Cache-Control": f"private, max-age={MAX_AGE_S}"}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        try:
            made = thumbnails.get(digest, image, SIZES[size])
        # Pillow raises whatever its decoders do: any of it means that this is no picture to show.
        except Exception:
            return no_picture(415)
        return Response(made, media_type="image/webp", headers=headers)


def no_picture(status):
    """A drawn stand-in, which browsers show whatever the status is."""
    return Response(
        NO_PICTURE, status, media_type="image/svg+xml", headers={"Cache-Control": "no-store"}
    )
