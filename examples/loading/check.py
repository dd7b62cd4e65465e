"""Whether bytes are a picture that the database will describe."""

import io
from dataclasses import dataclass

from PIL import Image

from .source import Unreadable

# What blip_describe decodes; Pillow knows more.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]

# Pixels are counted here, by the database's limit.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Limits:
    """The database's limits of one picture."""

    size: int
    """Encoded, in bytes: `pg_sight.max_image_size`."""
    pixels: int
    """Decoded: `pg_sight.max_image_pixels`."""

    def check_size(self, size):
        """Raises `Unreadable` for encoded pictures of so many bytes, if that is too many."""
        if size > self.size:
            raise Unreadable(f"{size:,} bytes; pg_sight.max_image_size is {self.size:,}")


def check(image, limits, headers_only=False):
    """Decodes the picture, as files that end too early show only then, or reads its header.

    Raises `Unreadable`.
    """
    limits.check_size(len(image))
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as picture:
            pixels = picture.width * picture.height
            if pixels > limits.pixels:
                raise Unreadable(
                    f"{pixels:,} pixels; pg_sight.max_image_pixels is {limits.pixels:,}"
                )
            if not headers_only:
                # JPEG is read to its end for an eighth of the pixels, too, and sooner.
                picture.draft("RGB", (1, 1))
                picture.load()
    except Unreadable:
        raise
    except Image.UnidentifiedImageError:
        raise Unreadable("not a picture in a known format") from None
    # Damaged files raise errors of many classes in Pillow.
    except Exception as error:
        raise Unreadable(str(error) or type(error).__name__) from error
