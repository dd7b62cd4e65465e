"""Compare a model directory, layer by layer, with what transformers and sentence-transformers compute from it.

usage: compare.py DIRECTORY [--texts FILE | --image FILE] [--prompt TEXT] [--bound 1e-4] [--beams 1] [--program FILE]

The example `trace` of the crate sight-models computes the same input; --program is its executable where cargo should
not build it. Texts are one a line, each computed alone; without a file some are built in, and a picture is drawn.
InstructBLIP answers a prompt about it.
The table has the worst of all texts: the largest difference, the same over the largest value, and the cosine of the
whole state. Exit status 1 where a relative difference is above the bound, or token ids differ.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from reference import encoder_modules, recorded, trace_captioner, trace_instructed, with_stored_options
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoTokenizer,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
)

REPOSITORY = Path(__file__).parents[2]
TEXTS = [
    "red",
    "A red shoe on a wooden chair.",
    "Unlikely, walking! the photo's café -- 日本 zzz",
    "the small blue boots and the large old lamp in a picture of 1 2 3 bags, walked with an unlikely striped dress. " * 12,
]
PROMPT = "describe this image in full detail"
NEW_TOKENS = 20
# Of samples from 0 to 255: decoders of JPEG differ by so much.
PIXEL_BOUND = 2.5


@dataclass
class Row:
    """How far apart two states are; of several pairs the worst."""

    difference: float = 0.0
    relative: float = 0.0
    cosine: float = 1.0

    def add(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        ours, theirs = ours.double().flatten(), theirs.double().flatten()
        difference = (ours - theirs).abs().max().item()
        self.difference = max(self.difference, difference)
        self.relative = max(self.relative, difference / max(theirs.abs().max().item(), 1e-30))
        self.cosine = min(self.cosine, torch.nn.functional.cosine_similarity(ours, theirs, dim=0).item())


class Comparison:
    """Rows by the name of a state, in the order of computing, and what is wrong."""

    def __init__(self, bound: float) -> None:
        self.bound = bound
        self.rows: dict[str, Row] = {}
        self.faults: list[str] = []

    def states(self, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
        if missing := ours.keys() ^ theirs.keys():
            self.faults.append(f"only one side has {', '.join(sorted(missing))}")
        for name in theirs:
            if name not in ours:
                continue
            if ours[name].shape != theirs[name].shape:
                self.faults.append(f"{name}: shapes are {tuple(ours[name].shape)} and {tuple(theirs[name].shape)}")
                continue
            self.rows.setdefault(name, Row()).add(ours[name], theirs[name])

    def ids(self, what: str, ours: list[int], theirs: list[int]) -> None:
        if ours != theirs:
            self.faults.append(f"token ids of {what} are {ours}, not {theirs}")

    def report(self) -> bool:
        """Prints everything; whether all is within the bound."""
        print(f"{'state':<20}{'max abs diff':>14}{'relative':>12}{'cosine':>14}")
        for name, row in self.rows.items():
            # A difference that is no number is beyond every bound.
            beyond = not row.relative <= self.bound
            print(f"{name:<20}{row.difference:>14.3e}{row.relative:>12.3e}{row.cosine:>14.9f}{'  <-- beyond the bound' if beyond else ''}")
            if beyond:
                self.faults.append(f"{name} differs by {row.relative:.3e}")
        for fault in self.faults:
            print(f"DIFFERENT: {fault}")
        if not self.faults:
            print(f"same within {self.bound:g}")
        return not self.faults


def run_trace(program: Path | None, arguments: list[str], output: Path) -> dict[str, torch.Tensor]:
    """What our implementation computes."""
    command = [str(program)] if program else ["cargo", "run", "--release", "--quiet", "-p", "sight-models", "--example", "trace", "--"]
    subprocess.run([*command, *arguments, str(output)], check=True, cwd=REPOSITORY)
    return load_file(output)


def below(states: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): state for name, state in states.items() if name.startswith(prefix)}


@torch.no_grad()
def compare_texts(directory: Path, texts: list[str], program: Path | None, scratch: Path, comparison: Comparison) -> None:
    file = scratch / "texts.txt"
    file.write_text("\n".join(texts) + "\n")
    traced = run_trace(program, [str(directory), "--texts", str(file)], scratch / "trace.safetensors")
    encoder = SentenceTransformer(str(directory), device="cpu", model_kwargs={"dtype": torch.float32}).eval()
    prompt = encoder.prompts.get(encoder.default_prompt_name or "", "") or ""
    for index, text in enumerate(texts):
        ours = below(traced, f"{index}.")
        features = encoder.preprocess([text], prompt=prompt)
        comparison.ids(f"text {index}", ours.pop("ids").tolist(), features["input_ids"][0].tolist())
        with recorded(encoder_modules(encoder[0].auto_model)) as theirs:
            features = encoder[0](features)
        # The modules after the transformer, one by one.
        for place, module in enumerate(list(encoder)[1:]):
            features = module(features)
            kind = type(module).__name__
            if kind in ("Pooling", "Dense"):
                theirs["pooled" if kind == "Pooling" else f"dense.{place - 1}"] = features["sentence_embedding"].clone()
        comparison.states(ours, {**theirs, "embedding": features["sentence_embedding"]})


def same_pixels(directory: Path, picture: Path, ours: dict[str, torch.Tensor], comparison: Comparison) -> torch.Tensor:
    """Compares the pixels, and returns ours, with which both go on."""
    processor = BlipImageProcessorPil.from_pretrained(directory)
    expected = processor(images=[Image.open(picture)], return_tensors="pt")["pixel_values"]
    pixels = ours.pop("pixels")[None]
    std = torch.tensor(processor.image_std).reshape(1, 3, 1, 1)
    samples = ((pixels - expected) * std * 255).abs().max().item()
    print(f"pixels differ by up to {samples:.3f} of 255")
    if not samples <= PIXEL_BOUND:
        comparison.faults.append(f"pixels differ by {samples:.3f} of 255")
    return pixels


@torch.no_grad()
def compare_picture(directory: Path, picture: Path, beams: int, program: Path | None, scratch: Path, comparison: Comparison) -> None:
    arguments = [str(directory), "--image", str(picture), "--beams", str(beams), "--new-tokens", str(NEW_TOKENS)]
    ours = run_trace(program, arguments, scratch / "trace.safetensors")
    pixels, ids = same_pixels(directory, picture, ours, comparison), ours.pop("ids").tolist()
    model = BlipForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    options = with_stored_options(directory, {"num_beams": beams, "max_new_tokens": NEW_TOKENS})
    generated = model.generate(pixel_values=pixels, **options)[0].tolist()
    comparison.ids("the caption", ids, generated)
    comparison.states(ours, trace_captioner(model, pixels, ids))


@torch.no_grad()
def compare_answer(directory: Path, picture: Path, prompt: str, beams: int, program: Path | None, scratch: Path, comparison: Comparison) -> None:
    arguments = [str(directory), "--image", str(picture), "--prompt", prompt, "--beams", str(beams), "--new-tokens", str(NEW_TOKENS)]
    ours = run_trace(program, arguments, scratch / "trace.safetensors")
    pixels, ids = same_pixels(directory, picture, ours, comparison), ours.pop("ids").tolist()
    model = InstructBlipForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (directory, directory / "qformer_tokenizer")]
    images = BlipImageProcessorPil.from_pretrained(directory)
    processor = InstructBlipProcessor(images, *tokenizers, num_query_tokens=model.config.num_query_tokens)
    inputs = processor(images=[Image.open(picture)], text=[prompt], return_tensors="pt")
    inputs = {name: inputs[name] for name in ("qformer_input_ids", "qformer_attention_mask", "input_ids", "attention_mask")}
    inputs["pixel_values"] = pixels
    options = with_stored_options(directory, {"num_beams": beams, "max_new_tokens": NEW_TOKENS})
    generated = model.generate(**inputs, **options)[0].tolist()
    comparison.ids("the answer", ids, generated)
    # A T5 reads the prompt in its encoder, and its answers begin with a token of their own.
    begin = 1 if model.config.text_config.is_encoder_decoder else inputs["input_ids"].shape[1]
    comparison.states(ours, trace_instructed(model, inputs, ids[begin:]))


def draw_picture(file: Path) -> Path:
    """Noise of several sizes over each other, wider than high."""
    draw = np.random.default_rng(1)
    sizes = [(4, 5), (16, 20), (480, 640)]
    layers = [Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)).resize((640, 480), Image.Resampling.BICUBIC) for size in sizes]
    Image.fromarray(np.mean([np.asarray(layer) for layer in layers], axis=0).astype(np.uint8)).save(file)
    return file


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare a model with transformers, layer by layer.")
    parser.add_argument("directory", type=Path)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--texts", type=Path, help="one a line")
    chosen.add_argument("--image", type=Path)
    parser.add_argument("--prompt", help=f'of InstructBLIP (default "{PROMPT}")')
    parser.add_argument("--bound", type=float, default=1e-4, help="of relative differences")
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--program", type=Path, help="the built example")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    directory, program = args.directory.resolve(), args.program and args.program.resolve()
    kind = json.loads((directory / "config.json").read_text())["model_type"]
    captions = kind in ("blip", "instructblip")
    if captions and args.texts or not captions and args.image or args.prompt is not None and kind != "instructblip":
        parser.error("the input is not of the kind that this model takes")
    comparison = Comparison(args.bound)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        if captions:
            picture = args.image.resolve() if args.image else draw_picture(scratch / "picture.png")
            if kind == "blip":
                compare_picture(directory, picture, args.beams, program, scratch, comparison)
            else:
                prompt = PROMPT if args.prompt is None else args.prompt
                compare_answer(directory, picture, prompt, args.beams, program, scratch, comparison)
        else:
            texts = args.texts.read_text().splitlines() if args.texts else TEXTS
            compare_texts(directory, texts, program, scratch, comparison)
    return 0 if comparison.report() else 1


if __name__ == "__main__":
    sys.exit(main())
