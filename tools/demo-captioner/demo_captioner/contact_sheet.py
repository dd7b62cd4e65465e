"""A sheet of pictures, three of each category, with their captions.

    python -m demo_captioner.contact_sheet sheet.png
"""

import argparse

from PIL import Image, ImageDraw, ImageFont

from .catalogue import CATEGORIES, Product
from .picture import render

_FIRST_SEED = 9_000_000
_COLUMNS, _WIDTH, _HEIGHT, _TEXT_HEIGHT = 7, 200, 150, 28


def contact_sheet():
    """Draws the sheet."""
    count = len(CATEGORIES) * 3
    font = ImageFont.load_default(11)
    row_height = _HEIGHT + _TEXT_HEIGHT
    sheet = Image.new("RGB", (_COLUMNS * _WIDTH, count // _COLUMNS * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    for i in range(count):
        product = Product.sample(_FIRST_SEED + i, category=CATEGORIES[i % len(CATEGORIES)])
        x, y = i % _COLUMNS * _WIDTH, i // _COLUMNS * row_height
        sheet.paste(render(product, (_WIDTH - 4, _HEIGHT - 2)), (x, y))
        text = product.caption.replace(" on ", "\non ")
        draw.text((x + 2, y + _HEIGHT - 2), text, fill="black", font=font, spacing=1)
    return sheet


def main():
    parser = argparse.ArgumentParser(description="Draw a sheet of product pictures.")
    parser.add_argument("file", nargs="?", default="contact_sheet.png")
    contact_sheet().save(parser.parse_args().file)


if __name__ == "__main__":
    main()
