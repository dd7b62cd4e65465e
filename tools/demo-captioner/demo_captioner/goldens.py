"""Writes golden captions: 32 held-out pictures and the ids that transformers makes of them.

    python -m demo_captioner.goldens --model model --out .

The pictures are model-sized already, so that no difference of resampling can
blur a comparison. Plain beam search gives what greedy search gives on such
pictures; the forced lengths are there to catch a wrong beam search.
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from .captioner import MAX_NEW_TOKENS, NUM_BEAMS, PROMPT, Captioner
from .catalogue import Product
from .dataset import training_picture

FIRST_SEED, COUNT = 6_000_000, 32
_MIN_LENGTH = {"min_length": 16, "max_length": 22}
_PENALTY = {"min_length": 16, "repetition_penalty": 1.3, "max_length": 22}
# Pairs that differ in the number of beams only.
FORCED = {
    "stress_beam3": {"num_beams": NUM_BEAMS, **_PENALTY},
    "stress_greedy": {"num_beams": 1, **_PENALTY},
    "minlen_beam3": {"num_beams": NUM_BEAMS, **_MIN_LENGTH},
    "minlen_greedy": {"num_beams": 1, **_MIN_LENGTH},
}


def write_goldens(captioner, folder):
    """Writes goldens/SEED.png and goldens.json below a folder; returns the items."""
    seeds = range(FIRST_SEED, FIRST_SEED + COUNT)
    images = [Image.fromarray(training_picture(seed)) for seed in seeds]
    (folder / "goldens").mkdir(parents=True, exist_ok=True)
    for seed, image in zip(seeds, images, strict=True):
        image.save(folder / "goldens" / f"{seed}.png")
    runs = {
        "greedy": captioner.generate(images),
        "beam3": captioner.generate(images, num_beams=NUM_BEAMS),
        "prompt_greedy": captioner.generate(images, PROMPT),
        "prompt_beam3": captioner.generate(images, PROMPT, num_beams=NUM_BEAMS),
    }
    forced = {name: captioner.generate(images, **options) for name, options in FORCED.items()}
    between = captioner.intermediate(images)
    items = []
    for i, seed in enumerate(seeds):
        item = _described(captioner, Product.sample(seed))
        for name, outputs in runs.items():
            item[f"{name}_ids"] = outputs[i]
            item[f"{name}_text"] = captioner.text(outputs[i])
        item["correct"] = item["greedy_text"] == item["expected_text"]
        item |= _numbers(*(tensor[i] for tensor in between))
        item |= {f"{name}_ids": outputs[i] for name, outputs in forced.items()}
        items.append(item)
    (folder / "goldens.json").write_text(json.dumps(_document(items), indent=1))
    return items


def _described(captioner, product):
    return {
        "seed": product.seed,
        "file": f"goldens/{product.seed}.png",
        "caption": product.caption,
        "expected_text": captioner.decoded(product.caption),
    }


def _numbers(pixels, features, logits):
    top = logits.topk(3)
    best = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return {
        "first_step_top3": [[index, round(value, 4)] for index, value in best],
        "vision_cls_first4": [round(value, 4) for value in features[0, :4].tolist()],
        "pixel_values_c0_first4": [round(value, 5) for value in pixels[0, 0, :4].tolist()],
    }


def _document(items):
    return {
        "prompt": PROMPT,
        "max_new_tokens": MAX_NEW_TOKENS,
        "num_beams": NUM_BEAMS,
        "note": "ids start with the bos id ([DEC]) and end with [SEP]=102; "
        "prompted ids contain the prompt",
        "items": items,
        "stress": {
            "note": "forced past the natural end, nonsense by design: these exercise beam "
            "search, min_length and repetition_penalty",
            **FORCED,
        },
    }


def main():
    parser = argparse.ArgumentParser(description="Write golden captions of held-out pictures.")
    parser.add_argument("--model", type=Path, default=Path("model"))
    parser.add_argument("--out", type=Path, default=Path("."))
    args = parser.parse_args()
    items = write_goldens(Captioner(args.model), args.out)
    print(f"{sum(item['correct'] for item in items)} of {len(items)} captions are right")


if __name__ == "__main__":
    main()
