"""Write an InstructBLIP captioner of full size with random weights, in shards, without ever holding it whole.

usage: random_instructblip.py OUTPUT_DIRECTORY [--size 7b] [--layers N] [--shard-gigabytes 2] [--seed 1]

The sizes of `Salesforce/instructblip-vicuna-7b` or `-13b` in float16: 16 or 28 GB. Its sizes and speed are those of
the real model, its answers are noise. Values come from a pool of normal numbers, each tensor from another place of it,
since drawing all of them would take longer than all else. The tokenizers are those of the small fixtures.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import BlipImageProcessorPil, InstructBlipConfig, InstructBlipForConditionalGeneration, LlamaConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))
from tiny_instructblip import Fixture, write_question_tokenizer, write_tokenizer  # noqa: E402

SIZES = {
    "7b": {},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}
POOL_VALUES = 1 << 24
CHUNK_VALUES = 1 << 23
Shape = tuple[int, ...]


def shapes_of(config: InstructBlipConfig) -> dict[str, Shape]:
    with torch.device("meta"):
        model = InstructBlipForConditionalGeneration(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def scale_and_shift(name: str, shape: Shape) -> tuple[float, float]:
    """So that states keep their size from layer to layer, as in random_model.py."""
    if len(shape) == 1:
        return 0.1, 1.0 if name.endswith("weight") else 0.0
    if "embed" in name and "patch" not in name or name == "query_tokens":
        return 0.1, 0.0
    return float(np.prod(shape[1:])) ** -0.5, 0.0


def values(pool: np.ndarray, draw: np.random.Generator, name: str, shape: Shape) -> Iterator[bytes]:
    scale, shift = scale_and_shift(name, shape)
    rest = int(np.prod(shape))
    while rest > 0:
        count = min(rest, CHUNK_VALUES)
        start = int(draw.integers(0, len(pool) - count + 1))
        yield (pool[start : start + count] * np.float32(scale) + np.float32(shift)).astype(np.float16).tobytes()
        rest -= count


def write_shard(path: Path, shapes: dict[str, Shape], pool: np.ndarray, draw: np.random.Generator) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for chunk in values(pool, draw, name, shape):
                file.write(chunk)


def shards(shapes: dict[str, Shape], limit: int) -> list[dict[str, Shape]]:
    """Tensors in their order, as many together as have `limit` bytes."""
    parts, size = [{}], 0
    for name, shape in shapes.items():
        bytes_of = 2 * int(np.prod(shape))
        if parts[-1] and size + bytes_of > limit:
            parts.append({})
            size = 0
        parts[-1][name] = shape
        size += bytes_of
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description="Write an InstructBLIP of full size with random weights.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--layers", type=int, help="layers of the language model, where fewer are wanted")
    parser.add_argument("--shard-gigabytes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    shutil.rmtree(args.output, ignore_errors=True)
    args.output.mkdir(parents=True)
    fixture = Fixture("", {}, {}, {}, 32, 0.0)
    write_question_tokenizer(fixture, args.output)
    tokens = write_tokenizer(fixture, args.output)
    text = SIZES[args.size] | ({"num_hidden_layers": args.layers} if args.layers else {})
    config = InstructBlipConfig(
        text_config=LlamaConfig(vocab_size=32064, rms_norm_eps=1e-5, **text).to_dict(), qformer_config={"vocab_size": 30523}, image_token_index=tokens - 1
    )
    config.architectures, config.dtype = ["InstructBlipForConditionalGeneration"], "float16"
    config.save_pretrained(args.output)
    BlipImageProcessorPil(size={"height": 224, "width": 224}).save_pretrained(args.output)
    draw = np.random.default_rng(args.seed)
    pool = draw.standard_normal(POOL_VALUES, np.float32)
    parts = shards(shapes_of(config), int(args.shard_gigabytes * 1e9))
    index = {}
    for number, part in enumerate(parts, 1):
        name = f"model-{number:05}-of-{len(parts):05}.safetensors"
        write_shard(args.output / name, part, pool, draw)
        index |= dict.fromkeys(part, name)
    total = sum(2 * int(np.prod(shape)) for part in parts for shape in part.values())
    (args.output / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}))
    print(f"{total / 1e9:.1f} GB in {len(parts)} shards")


if __name__ == "__main__":
    main()
