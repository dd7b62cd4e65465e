"""Renders a product: outline, material, background, light, shadow, camera.

Everything is a function of the integer seed. Each stage has a random stream
of its own (numpy PCG64), so that a product looks the same at any size.
"""

import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .background import background
from .material import pattern_texture, random_material
from .outline import Outline
from .placement import random_placement
from .shapes import DRAWERS

_EDGED = {"main", "dark", "light", "trim"}
_EDGE_WIDTH = 0.024


def render(product, size=(480, 360), oversampling=2, jpeg=True, difficulty=1.0):
    """The picture of a product as an RGB image of `size` (width, height).

    Drawn `oversampling` times larger and reduced. `jpeg` adds a round trip
    through JPEG of random quality; `difficulty` scales rotation, shear and noise.
    """
    width, height = size[0] * oversampling, size[1] * oversampling
    rng = _stream(product, 2)
    outline = _outline(product)
    material = random_material(product, rng)
    points = outline.points()
    placement = random_placement(rng, points, width, height, difficulty)
    texture = pattern_texture(product, material.base, placement, points, rng, width, height)
    layer, alpha = _paint(outline, material, placement, texture, (width, height))
    if oversampling > 1:
        layer, alpha = layer.reduce(oversampling), alpha.reduce(oversampling)
    placement = placement.reduced(oversampling)
    # The layer is black outside the thing: it is premultiplied by alpha.
    thing = _lit(np.asarray(layer, np.float32), placement, rng)
    ground = background(product, _stream(product, 4), *size).astype(np.float32)
    ground = _shadowed(ground, alpha, placement.unit, rng)
    coverage = np.asarray(alpha, np.float32)[..., None] / 255
    return _photographed(ground * (1 - coverage) + thing, _stream(product, 5), difficulty, jpeg)


def silhouette(product, size=(480, 360), oversampling=1):
    """The shape of the thing as a grey image (255 inside), placed as `render` places it."""
    width, height = size[0] * oversampling, size[1] * oversampling
    rng = _stream(product, 2)
    outline = _outline(product)
    random_material(product, rng)  # only to take its numbers from the stream
    placement = random_placement(rng, outline.points(), width, height, 1.0)
    image = Image.new("L", (width, height))
    draw = ImageDraw.Draw(image)
    for part in outline.parts:
        pixels = placement.pixels(part.points)
        if part.width is None:
            draw.polygon(pixels, fill=255)
        else:
            draw.line(pixels, fill=255, width=_pixel_width(part.width, placement), joint="curve")
    return image


def picture_bytes(product, size=(480, 360), quality=88):
    """The picture as a JPEG file."""
    file = io.BytesIO()
    render(product, size, jpeg=False).save(file, "JPEG", quality=quality)
    return file.getvalue()


def _stream(product, stage):
    return np.random.default_rng([product.seed, stage])


def _outline(product):
    outline = Outline()
    DRAWERS[product.category](outline, _stream(product, 3).uniform)
    return outline


def _pixel_width(width, placement):
    return max(1, int(round(width * placement.unit)))


def _paint(outline, material, placement, texture, size):
    """Draws the parts: their colours on black, and their coverage."""
    layer, alpha = Image.new("RGB", size), Image.new("L", size)
    colours, coverage = ImageDraw.Draw(layer), ImageDraw.Draw(alpha)
    for part in outline.parts:
        pixels = placement.pixels(part.points)
        if part.role == "main" and texture is not None:
            mask = Image.new("L", size)
            _draw_part(ImageDraw.Draw(mask), part, pixels, placement, 255, 255)
            layer.paste(texture, (0, 0), mask)
            if part.width is None:
                _draw_edge(colours, pixels, placement, material.edge)
        else:
            colour = material.colour(part.role)
            _draw_part(colours, part, pixels, placement, colour, material.edge)
        _draw_part(coverage, part, pixels, placement, 255, 255)
    return layer, alpha


def _draw_part(draw, part, pixels, placement, fill, edge):
    if part.width is None:
        draw.polygon(pixels, fill=fill)
        if part.role in _EDGED:
            _draw_edge(draw, pixels, placement, edge)
        return
    width = _pixel_width(part.width, placement)
    draw.line(pixels, fill=fill, width=width, joint="curve")
    if width > 2 and part.role not in ("line", "trimline"):
        radius = width / 2 - 0.5
        for x, y in (pixels[0], pixels[-1]):
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)


def _draw_edge(draw, pixels, placement, colour):
    width = _pixel_width(_EDGE_WIDTH, placement)
    draw.line(pixels + pixels[:2], fill=colour, width=width, joint="curve")


def _lit(thing, placement, rng):
    """Light that falls off across the thing in a random direction."""
    y, x = np.mgrid[0 : thing.shape[0], 0 : thing.shape[1]].astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    strength = rng.uniform(0.03, 0.12)
    dx, dy = x - np.float32(placement.offset[0]), y - np.float32(placement.offset[1])
    t = dx * np.float32(math.cos(angle)) + dy * np.float32(math.sin(angle))
    t = t / np.float32(placement.unit * 1.2)
    return thing * (1 + np.float32(strength) * np.clip(t, -1, 1))[..., None]


def _shadowed(ground, alpha, unit, rng):
    """A soft shadow below the thing, on three pictures of four."""
    if rng.random() >= 0.75:
        return ground
    shift = (int(rng.uniform(-0.05, 0.05) * unit), int(rng.uniform(0.03, 0.09) * unit))
    width, height = alpha.size
    # Blurred at half the size: cheaper, and nobody sees it.
    half = alpha.resize((max(1, width // 2), max(1, height // 2)))
    half = half.filter(ImageFilter.GaussianBlur(max(1, unit * 0.06 / 2)))
    shadow = np.asarray(half.resize((width, height)), np.float32) / 255
    shadow = np.roll(shadow, (shift[1], shift[0]), (0, 1)) * np.float32(rng.uniform(0.12, 0.32))
    return ground * (1 - shadow[..., None])


def _photographed(scene, rng, difficulty, jpeg):
    """Contrast, brightness, colour cast, noise, blur and compression."""
    scene = (scene - 128) * rng.uniform(0.93, 1.05) + 128
    scene *= (rng.uniform(0.90, 1.06) * (1 + rng.normal(0, 0.012, 3))).astype(np.float32)
    grain = rng.standard_normal(scene.shape[:2], dtype=np.float32)
    scene += (grain * np.float32(rng.uniform(0.5, 5.5) * difficulty))[..., None]
    scene += rng.standard_normal(scene.shape, dtype=np.float32) * np.float32(1.2)
    image = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8))
    if rng.random() < 0.25:
        radius = rng.uniform(0.2, 0.9) * min(image.size) / 240
        image = image.filter(ImageFilter.GaussianBlur(radius))
    if not jpeg:
        return image
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(rng.integers(45, 96)))
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")
