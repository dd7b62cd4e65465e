"""Measures a trained captioner on pictures that the training has not seen.

    python -m demo_captioner.evaluation --model model --out metrics.json
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from PIL import Image

from .captioner import NUM_BEAMS, PROMPT, Captioner
from .catalogue import CATEGORIES, COLOURS, PATTERNS, Product
from .dataset import training_picture
from .picture import render

_SMALL_FIRST_SEED, _FULL_FIRST_SEED = 6_100_000, 6_500_000
_FULL_SIZES = [(480, 360), (640, 480), (320, 240), (400, 400), (360, 480)]
_UNSEEN_PROMPT = "this picture shows"
_ATTRIBUTES = ("category", "colour", "pattern", "background")


def attributes(text):
    """The attributes that a caption names; what it does not name is None or plain."""
    head, _, ground = text.replace("t - shirt", "t-shirt").partition(" on a")
    words = head.split()
    return {
        "category": next((name for name in CATEGORIES if head.endswith(" " + name)), None),
        "colour": next((word for word in words if word in COLOURS), None),
        "pattern": next((word for word in words if word in PATTERNS), "plain"),
        "background": ground.removeprefix("n").strip().removesuffix(" background"),
    }


def score(captioner, products, outputs):
    """Share of right attributes and of right captions among outputs (lists of ids)."""
    texts = [captioner.text(ids) for ids in outputs]
    pairs = list(zip(map(attributes, texts), products, strict=True))
    result = {
        name: _share(found[name] == getattr(product, name) for found, product in pairs)
        for name in _ATTRIBUTES
    }
    result["category+colour"] = _share(
        found["category"] == product.category and found["colour"] == product.colour
        for found, product in pairs
    )
    result["exact_caption"] = _share(
        text == captioner.decoded(product.caption)
        for text, product in zip(texts, products, strict=True)
    )
    return result


def confusions(captioner, products, outputs, most=10):
    """The most frequent mistakes by attribute, as "true->said": count."""
    counts = {name: Counter() for name in _ATTRIBUTES}
    for ids, product in zip(outputs, products, strict=True):
        found = attributes(captioner.text(ids))
        for name in _ATTRIBUTES:
            true = getattr(product, name)
            if found[name] != true:
                counts[name][f"{true}->{found[name]}"] += 1
    return {name: dict(count.most_common(most)) for name, count in counts.items()}


def evaluate(captioner, count):
    """All metrics; `count` pictures for the first one, fewer for the others."""
    seeds = range(_SMALL_FIRST_SEED, _SMALL_FIRST_SEED + count)
    products = [Product.sample(seed) for seed in seeds]
    images = [Image.fromarray(training_picture(seed)) for seed in seeds]
    greedy = _in_parts(captioner, images)
    metrics = {
        "96px greedy": score(captioner, products, greedy),
        "confusions": confusions(captioner, products, greedy),
    }
    few = min(600, count)
    beams = _in_parts(captioner, images[:few], num_beams=NUM_BEAMS)
    metrics["96px beam3"] = score(captioner, products[:few], beams)
    for prompt in (PROMPT, _UNSEEN_PROMPT):
        prompted = _in_parts(captioner, images[:few], prompt=prompt)
        # The ids begin with BOS and the prompt, which is not part of the answer.
        skipped = 1 + len(captioner.words(captioner.tokenizer(prompt)["input_ids"]))
        answers = [ids[skipped:] for ids in prompted]
        metrics[f"prompted '{prompt}' greedy"] = score(captioner, products[:few], answers)
    metrics["full-size pictures greedy"] = _full_size(captioner, min(300, count))
    captioner.model.half().float()
    rounded = _in_parts(captioner, images[:few])
    metrics["f16 weights: same greedy ids"] = _share(
        a == b for a, b in zip(rounded, greedy[:few], strict=True)
    )
    return metrics


def _full_size(captioner, count):
    seeds = range(_FULL_FIRST_SEED, _FULL_FIRST_SEED + count)
    products = [Product.sample(seed) for seed in seeds]
    images = [render(product, _FULL_SIZES[product.seed % 5]) for product in products]
    return score(captioner, products, _in_parts(captioner, images))


def _in_parts(captioner, images, size=100, **options):
    outputs = []
    for start in range(0, len(images), size):
        outputs += captioner.generate(images[start : start + size], **options)
    return outputs


def _share(hits):
    hits = list(hits)
    return round(sum(hits) / len(hits), 4)


def main():
    parser = argparse.ArgumentParser(description="Measure a captioner on held-out pictures.")
    parser.add_argument("--model", type=Path, default=Path("model"))
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=Path("metrics.json"))
    args = parser.parse_args()
    metrics = evaluate(Captioner(args.model), args.count)
    args.out.write_text(json.dumps(metrics, indent=1))
    print(json.dumps(metrics, indent=1))


if __name__ == "__main__":
    main()
