"""Speed on a GPU: pg_sight's models against sentence-transformers and transformers, on one card in turns.

usage: gpu.py --turns PROGRAM --texts TEXTS.txt --pictures FOLDER --models FOLDER [--report FILE] [--rounds 7]

PROGRAM is `crates/models/examples/turns.rs` built with the feature cuda (`scripts/cuda.sh pack` does it), TEXTS has a text
in each line. In --models lie mpnet-base and blip-large, as tools/compare/random_model.py makes them. Both sides compute with
bfloat16; the peer's answers in float32 on the same card say how much that rounds.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
import torch

BATCH_TOKENS = 16384
PICTURES = 32
NEW_TOKENS = 20
# Batches of the peer; the fastest counts.
PEER_BATCHES = (32, 128, 512)
SINGLE = 30


class Place:
    """Where both sides compute; a CPU only shows that this program works."""

    def __init__(self, device):
        self.device = device
        self.on_gpu = device.startswith("cuda")
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32
        self.dtype_name = "bfloat16" if self.on_gpu else "float32"

    def clock(self, work):
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def wait(self):
        if self.on_gpu:
            torch.cuda.synchronize()

    def ceilings(self):
        """What its units do at best: operations of matrix products, and bytes that are copied, per second."""
        size = 8192 if self.on_gpu else 512
        a, b = (torch.randn(size, size, device=self.device, dtype=self.dtype) for _ in range(2))
        big = torch.randn(size * size * 4, device=self.device)
        best = lambda work: min(self.clock(work) for _ in range(5))
        return 2 * size**3 / best(lambda: a @ b), 2 * big.numel() * 4 / best(lambda: big.clone())

    def title(self):
        return torch.cuda.get_device_name() if self.on_gpu else "NOT A GPU"


class Turns:
    """pg_sight's side, in a process of its own; see turns.rs."""

    def __init__(self, program, model, place, *work):
        args = [str(arg) for arg in (program, model, place.device, place.dtype_name, *work)]
        begun = time.perf_counter()
        self.process = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "ready\n":
            sys.exit("turns did not start")
        self.load_seconds = time.perf_counter() - begun

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"turns ended at: {line}")
        return answer.strip()

    def seconds(self, line):
        return float(self.ask(line))

    def end(self):
        self.process.stdin.close()
        self.process.wait()


class Table:
    """Rounds of two sides in turns, and what came of them."""

    def __init__(self, rounds):
        self.rounds = rounds
        self.rows = []

    def compare(self, name, unit, amount, ours, theirs):
        """amount / seconds of both, and the ratio of the rounds; where amount is None, milliseconds."""
        # What is made once, at the first use of a size.
        for _ in range(2):
            ours(), theirs()
        times = {"ours": [], "theirs": []}
        sides = [("ours", ours), ("theirs", theirs)]
        for _ in range(self.rounds):
            sides.reverse()
            for side, call in sides:
                times[side].append(call())
        ratios = sorted(theirs / ours for ours, theirs in zip(times["ours"], times["theirs"], strict=True))
        show = (lambda seconds: f"{amount / seconds:,.0f}") if amount else (lambda seconds: f"{seconds * 1000:.2f}")
        middle = {side: show(statistics.median(seconds)) for side, seconds in times.items()}
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        self.rows.append(f"| {name} | {unit} | {middle['ours']} | {middle['theirs']} | {ratio} |")
        print(self.rows[-1], flush=True)

    def text(self):
        head = ["| | | pg_sight | peer | pg_sight is faster by |", "| --- | --- | ---: | ---: | ---: |"]
        return "\n".join(head + self.rows)


def batches_by_tokens(lengths, budget):
    """Texts by their numbers, sorted, in batches that are not larger with their padding."""
    batches, batch = [], []
    for text in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[text] * (len(batch) + 1) > budget:
            batches.append(batch)
            batch = []
        batch.append(text)
    return [*batches, batch]


def embed(args, place, table, notes):
    from sentence_transformers import SentenceTransformer

    clock = place.clock
    texts = Path(args.texts).read_text().splitlines()
    directory = Path(args.models) / "mpnet-base"
    ours = Turns(args.turns, directory, place, "texts", args.texts, BATCH_TOKENS)
    load = lambda dtype: SentenceTransformer(str(directory), device=place.device, model_kwargs={"dtype": dtype})
    theirs = load(place.dtype)
    encode = lambda batch: theirs.encode(texts, batch_size=batch, show_progress_bar=False)
    count, tokens, batches = map(int, ours.ask("count").split())
    notes.append(f"{count:,} texts of {tokens / count:.1f} tokens on average, in {batches} batches of pg_sight; it loaded in {ours.load_seconds:.1f} s.")

    tried = {}
    for batch in PEER_BATCHES:
        encode(batch)
        tried[batch] = clock(lambda batch=batch: encode(batch))
    best = min(tried, key=tried.get)
    shown = ", ".join(f"{batch}: {count / seconds:,.0f}" for batch, seconds in tried.items())
    notes.append(f"sentence-transformers by its batch size, in texts per second: {shown}; the fastest one is compared.")
    table.compare("MPNet-base: texts", "texts/s", count, lambda: ours.seconds("all"), lambda: clock(lambda: encode(best)))

    lengths = [len(ids) for ids in theirs.tokenizer(texts)["input_ids"]]
    groups = batches_by_tokens(lengths, BATCH_TOKENS)
    features = [theirs.preprocess([texts[text] for text in group]) for group in groups]
    move = lambda value: value.to(place.device) if isinstance(value, torch.Tensor) else value
    features = [{name: move(value) for name, value in batch.items()} for batch in features]

    @torch.inference_mode()
    def forward():
        for batch in features:
            theirs(dict(batch))["sentence_embedding"].float().cpu()

    table.compare("MPNet-base: model alone", "texts/s", count, lambda: ours.seconds("tokens"), lambda: clock(forward))
    single = iter(range(10**9))
    table.compare(
        "MPNet-base: one text",
        "ms",
        None,
        lambda: statistics.median(ours.seconds(f"one {next(single) % count}") for _ in range(SINGLE)),
        lambda: statistics.median(clock(lambda: theirs.encode([texts[next(single) % count]], show_progress_bar=False)) for _ in range(SINGLE)),
    )
    notes.append(agreement(ours, texts, encode(best), load(torch.float32), count))
    ours.end()


def agreement(ours, texts, theirs, exact, count):
    """How far both sides' embeddings are from those in float32."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors"
        ours.ask(f"vectors {path}")
        found = numpy.fromfile(path, dtype="<f4").reshape(count, -1)
    exact = exact.encode(texts, batch_size=128, show_progress_bar=False)
    cosine = lambda vectors: float((vectors * exact).sum(1).min())
    return f"Least cosine with the embedding in float32: pg_sight {cosine(found):.5f}, sentence-transformers {cosine(theirs):.5f}."


def describe(args, place, table, notes):
    import transformers
    from PIL import Image
    from transformers import BlipForConditionalGeneration

    clock = place.clock
    directory = Path(args.models) / "blip-large"
    ours = Turns(args.turns, directory, place, "pictures", args.pictures)
    files = sorted(file for file in Path(args.pictures).iterdir() if file.suffix != ".json")[:PICTURES]
    processor = transformers.BlipImageProcessor.from_pretrained(directory)
    images = [Image.open(file).convert("RGB") for file in files]
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    model = BlipForConditionalGeneration.from_pretrained(directory, dtype=place.dtype).to(place.device).eval()
    notes.append(f"BLIP-large loaded in {ours.load_seconds:.1f} s; its captions have {NEW_TOKENS} new tokens.")
    options = {"num_beams": 1, "do_sample": False, "min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}

    @torch.inference_mode()
    def generate(count, model=model, dtype=place.dtype):
        return model.generate(pixel_values=pixels[:count].to(place.device, dtype), **options).cpu()

    @torch.inference_mode()
    def vision():
        model.vision_model(pixel_values=pixels.to(place.device, place.dtype))

    line = f"describe {PICTURES} {NEW_TOKENS}"
    table.compare("BLIP-large: 32 pictures", "pictures/s", PICTURES, lambda: ours.seconds(line), lambda: clock(lambda: generate(PICTURES)))
    table.compare("BLIP-large: looking at 32", "ms", None, lambda: ours.seconds(f"vision {PICTURES}"), lambda: clock(vision))
    line = f"describe 1 {NEW_TOKENS}"
    table.compare("BLIP-large: one picture", "ms", None, lambda: ours.seconds(line), lambda: clock(lambda: generate(1)))
    found = json.loads(ours.ask(f"ids {PICTURES} {NEW_TOKENS}"))
    theirs = generate(PICTURES).tolist()
    exact = generate(PICTURES, model.float(), torch.float32).tolist()
    # How many tokens go by until one is another than in float32.
    same = lambda answers: statistics.mean(common(a, b) for a, b in zip(answers, exact, strict=True))
    notes.append(f"Tokens of a caption that are those in float32, on average: pg_sight {same(found):.1f}, transformers {same(theirs):.1f} of {len(exact[0])}.")
    ours.end()


def common(a, b):
    """Length of the common beginning, but for what the first token may be."""
    return next((place for place, (x, y) in enumerate(zip(a[1:], b[1:], strict=False), 1) if x != y), min(len(a), len(b)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", required=True)
    parser.add_argument("--texts", required=True)
    parser.add_argument("--pictures", required=True)
    parser.add_argument("--models", required=True)
    parser.add_argument("--report")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--measure", default="embed,describe")
    parser.add_argument("--device", default="cuda", help="cpu only shows that this program works")
    args = parser.parse_args()
    import sentence_transformers
    import transformers

    place, table, notes = Place(args.device), Table(args.rounds), []
    products, bytes_copied = place.ceilings()
    notes.append(f"The card: {products / 1e12:.0f} TFLOP/s in matrix products of {place.dtype_name}, {bytes_copied / 1e12:.2f} TB/s in copies.")
    for part in args.measure.split(","):
        {"embed": embed, "describe": describe}[part](args, place, table, notes)
    versions = ", ".join(f"{package.__name__} {package.__version__}" for package in (torch, transformers, sentence_transformers))
    lines = [
        "# Models on a GPU",
        "",
        f"{place.title()}, {platform.machine()}, {versions}; {place.dtype_name} on both sides, median of {args.rounds} rounds in turns,",
        "ratio of a round with its range.",
        "",
        table.text(),
        "",
        *(f"- {note}" for note in notes),
        "",
    ]
    report = "\n".join(lines)
    print(report)
    if args.report:
        Path(args.report).write_text(report)


if __name__ == "__main__":
    main()
