"""An InstructBLIP whose language model is in 4 bits on a GPU, against transformers, on one card in one run.

usage: four_bits.py --program PROGRAM --model FOLDER --picture FILE [--report FILE]

PROGRAM is `crates/models/examples/four_bits.rs` built with the feature cuda (`scripts/cuda.sh pack` does it), FOLDER a model as
tools/compare/random_instructblip.py makes it. transformers computes in 4 bits where bitsandbytes is installed, else in
float16. Of random weights answers are noise and seldom end: what is compared is tokens per second.
"""

import argparse
import importlib.util
import re
import subprocess
import time
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import AutoTokenizer, BitsAndBytesConfig, BlipImageProcessor, InstructBlipForConditionalGeneration, InstructBlipProcessor

PROMPTS = ["describe this image in full detail", "create an extensive description of this image"]
# The calls that are compared: that of one answer, and that of a catalogue.
CALLS = {
    "greedy, 128 tokens": {"num_beams": 1, "min_new_tokens": 128, "max_new_tokens": 128},
    "10 beams, up to 512 tokens": {"num_beams": 10, "max_length": 512, "min_length": 16, "repetition_penalty": 1.5},
}
FLAGS = {"num_beams": "--beams", "max_new_tokens": "--new-tokens", "max_length": "--max-length", "min_length": "--min-length", "repetition_penalty": "--repetition-penalty"}


def ours(args: argparse.Namespace, options: dict) -> tuple[list[tuple[int, float]], str, str]:
    """For each prompt tokens and seconds; the line on loading and that on memory."""
    command = [args.program, args.model, args.picture, "--device", args.device]
    for prompt in PROMPTS:
        command += ["--prompt", prompt]
    for name, value in options.items():
        command += [FLAGS[name], str(value)] if name in FLAGS else []
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    answers = [(int(tokens), int(tokens) / float(rate)) for tokens, rate in re.findall(r"^(\d+) tokens, ([\d.]+) a second", output, re.MULTILINE)]
    loaded = re.search(r"^loaded: .*$", output, re.MULTILINE)[0]
    memory = re.search(r"^all programs took .*$", output, re.MULTILINE)
    return answers, loaded, memory[0] if memory else ""


class Peer:
    def __init__(self, args: argparse.Namespace) -> None:
        folder = Path(args.model)
        self.device = args.device
        self.four_bits = importlib.util.find_spec("bitsandbytes") is not None
        quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float16)
        options = {"quantization_config": quantized, "device_map": args.device} if self.four_bits else {}
        begun = time.perf_counter()
        model = InstructBlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float16, **options).eval()
        self.model = model if self.four_bits else model.to(args.device)
        self.loaded = time.perf_counter() - begun
        tokenizers = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder / "qformer_tokenizer")
        self.processor = InstructBlipProcessor(BlipImageProcessor.from_pretrained(folder), *tokenizers, num_query_tokens=self.model.config.num_query_tokens)
        self.picture = Image.open(args.picture).convert("RGB")

    def title(self) -> str:
        return "transformers, " + ("4 bits (bitsandbytes)" if self.four_bits else "float16")

    @torch.inference_mode()
    def answer(self, prompt: str, options: dict) -> tuple[int, float]:
        inputs = self.processor(images=self.picture, text=prompt, return_tensors="pt").to(self.device, torch.float16)
        names = ("pixel_values", "qformer_input_ids", "qformer_attention_mask", "input_ids", "attention_mask")
        inputs = {name: inputs[name] for name in names}
        begun = time.perf_counter()
        ids = self.model.generate(**inputs, do_sample=False, **options)[0].tolist()
        seconds = time.perf_counter() - begun
        return len(ids) - inputs["input_ids"].shape[1], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--program", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--picture", required=True)
    parser.add_argument("--report")
    parser.add_argument("--device", default="cuda", help="cpu only shows that this program works")
    args = parser.parse_args()
    found = {name: ours(args, options) for name, options in CALLS.items()}
    peer = Peer(args)
    peer.answer(PROMPTS[0], {"num_beams": 1, "max_new_tokens": 8})
    rows, notes = [], []
    for name, options in CALLS.items():
        answers, loaded, memory = found[name]
        theirs = [peer.answer(prompt, options) for prompt in PROMPTS]
        rates = [sum(tokens for tokens, _ in side) / sum(seconds for _, seconds in side) for side in (answers, theirs)]
        rows.append(f"| {name} | {rates[0]:.1f} | {rates[1]:.1f} | {rates[0] / rates[1]:.2f} |")
        notes.append(f"- {name}: {loaded}; {memory}")
    card = torch.cuda.get_device_name() if args.device != "cpu" else "NOT A GPU"
    peak = torch.cuda.max_memory_allocated() >> 20 if args.device != "cpu" else 0
    lines = [
        "# InstructBLIP with Vicuna 7B in 4 bits",
        "",
        f"{card}, torch {torch.__version__}, transformers {transformers.__version__}; random weights; tokens per second of two answers",
        "one after the other, pictures and instructions included.",
        "",
        f"| | pg_sight, 4 bits | {peer.title()} | pg_sight is faster by |",
        "| --- | ---: | ---: | ---: |",
        *rows,
        "",
        *notes,
        f"- transformers: loaded: {peer.loaded:.2f} s; it took {peak} MB of the device at most",
        "",
    ]
    print("\n".join(lines))
    if args.report:
        Path(args.report).write_text("\n".join(lines))


if __name__ == "__main__":
    main()
