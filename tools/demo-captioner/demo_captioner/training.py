"""Trains the small BLIP captioner on drawn pictures.

    python -m demo_captioner.tokenizer model
    python -m demo_captioner.dataset work/train.u8 --first 0 --count 34000
    python -m demo_captioner.dataset work/mask.u8 --first 0 --count 34000 --silhouettes
    python -m demo_captioner.dataset work/val.u8 --first 5000000 --count 1500
    python -m demo_captioner.training --steps 3116

First the vision tower alone, with heads for the attributes; then the text
decoder with it.
"""

import argparse
import json
import math
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from transformers import BlipForConditionalGeneration  # noqa: E402

from .batches import CaptionBatches, augment  # noqa: E402
from .catalogue import CATEGORIES, Product  # noqa: E402
from .dataset import PICTURE_SIZE, open_pictures, open_silhouettes  # noqa: E402
from .network import ATTRIBUTES, AttributeHeads, configuration, initialise, pixel_values  # noqa: E402
from .optimizer import Muon  # noqa: E402
from .tokenizer import PAD_ID, SEP_ID, vocabulary  # noqa: E402

VALIDATION_FIRST_SEED = 5_000_000
_ATTRIBUTE_WEIGHTS = (1.0, 1.0, 0.6, 0.6)
_AVERAGE_DECAY = 0.998
_WARM_UP_STEPS, _TEXT_WARM_UP_STEPS = 150, 200
_REPORT_EVERY, _EVALUATE_EVERY = 50, 400


@dataclass
class Examples:
    """Pictures with what is on them: labels (n, 4) of attributes, and encoded captions."""

    pictures: np.ndarray
    labels: torch.Tensor
    captions: list

    @classmethod
    def open(cls, file, first_seed, texts, limit=None):
        """The pictures of a file whose first seed is known."""
        pictures = open_pictures(file)[:limit]
        products = [Product.sample(first_seed + i) for i in range(len(pictures))]
        labels = [
            [names.index(getattr(product, name)) for name, names in ATTRIBUTES.items()]
            for product in products
        ]
        captions = [texts.encode(product.caption) for product in products]
        return cls(pictures, torch.tensor(labels), captions)


class Trainer:
    """Model, heads, optimizers and the moving average of the weights."""

    def __init__(self, args):
        self.args = args
        self.rng = np.random.default_rng(0)
        self.texts = CaptionBatches(self.rng)
        self.train = Examples.open(args.work / "train.u8", 0, self.texts, args.pictures)
        self.silhouettes = open_silhouettes(args.work / "mask.u8")
        self.validation = Examples.open(args.work / "val.u8", VALIDATION_FIRST_SEED, self.texts)
        self.model = BlipForConditionalGeneration(
            configuration(
                len(vocabulary()),
                args.vision_hidden,
                args.text_hidden,
                args.vision_layers,
                args.text_layers,
                args.patch,
            )
        )
        self.heads = AttributeHeads(args.vision_hidden)
        initialise(self.model, self.train.pictures[:1500])
        self.vision = [*self.model.vision_model.parameters(), *self.heads.parameters()]
        self.text = list(self.model.text_decoder.parameters())
        self._make_optimizers()
        state = self.model.state_dict()
        self.average = {name: value.detach().clone() for name, value in state.items()}
        self.step = 0
        self.joint_from = None
        self._order = np.array([], int)

    def _make_optimizers(self):
        matrices = [
            parameter
            for name, parameter in self.model.vision_model.named_parameters()
            if parameter.dim() == 2 and ".layers." in name
        ]
        in_muon = {id(parameter) for parameter in matrices}
        rest = [parameter for parameter in self.vision if id(parameter) not in in_muon]
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(
            _decay_groups(rest, is_text=False) + _decay_groups(self.text, is_text=True),
            lr=self.args.learning_rate,
            betas=(0.9, 0.98),
            eps=1e-8,
        )

    def train_step(self, progress):
        """One step at a progress from 0 to 1; returns its losses: attributes, captions, patches."""
        joint = progress >= self.args.joint_from
        if joint and self.joint_from is None:
            self.joint_from = self.step
            print(f"text decoder from step {self.step}", flush=True)
        rate = self._set_learning_rate(progress, joint)
        rows = self._next_rows()
        labels = self.train.labels[rows]
        silhouettes = torch.from_numpy(self.silhouettes[rows]).float()[:, None] / 255
        pixels = pixel_values(self.train.pictures[rows])
        pixels, silhouettes = augment(pixels, silhouettes, self.rng)
        features = self.model.vision_model(pixels).last_hidden_state
        attributes = self._attribute_loss(features, labels)
        patches = self._patch_loss(features, labels, silhouettes)
        loss = (attributes + patches) * (0.5 if joint else 1)
        captions = torch.zeros(())
        if joint:
            captions = self._caption_loss(features, rows)
            loss = loss + 2 * captions
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.vision + self.text, 1.0)
        self.adam.step()
        self.muon.step(self.args.muon_learning_rate * rate / self.args.learning_rate)
        self.step += 1
        self._update_average()
        return attributes.item(), captions.item(), patches.item()

    def _set_learning_rate(self, progress, joint):
        """Warm-up, then a cosine down to 1.5 %; the text decoder warms up when it joins."""
        cosine = 0.015 + 0.985 * 0.5 * (1 + math.cos(math.pi * progress))
        rate = self.args.learning_rate * min(1, (self.step + 1) / _WARM_UP_STEPS) * cosine
        text_rate = rate
        if joint:
            text_rate *= min(1, (self.step - self.joint_from + 1) / _TEXT_WARM_UP_STEPS)
        for group in self.adam.param_groups:
            group["lr"] = text_rate if group["is_text"] else rate
        return rate

    def _next_rows(self):
        """Indices of a batch; each picture once before any comes again."""
        if len(self._order) < self.args.batch:
            more = self.rng.permutation(len(self.train.pictures))
            self._order = np.concatenate([self._order, more])
        rows, self._order = np.split(self._order, [self.args.batch])
        return np.sort(rows)

    def _attribute_loss(self, features, labels):
        losses = (
            weight * functional.cross_entropy(logits, labels[:, i], label_smoothing=0.02)
            for i, (logits, weight) in enumerate(zip(self.heads(features), _ATTRIBUTE_WEIGHTS))
        )
        return sum(losses)

    def _patch_loss(self, features, labels, silhouettes):
        """Each patch tells its 4x4 cells of the silhouette and whether the product covers it."""
        grid = PICTURE_SIZE // self.args.patch
        if silhouettes.shape[-1] != 4 * grid:
            silhouettes = functional.interpolate(silhouettes, size=4 * grid, mode="area")
        cells = silhouettes.reshape(-1, grid, 4, grid, 4).permute(0, 1, 3, 2, 4)
        cells = cells.reshape(len(features), grid * grid, 16)
        covered = cells.mean(-1) > 0.2
        categories = torch.where(covered, labels[:, :1], len(CATEGORIES))
        patches = features[:, 1:]
        shape = functional.binary_cross_entropy_with_logits(self.heads.silhouette(patches), cells)
        logits = self.heads.patch_category(patches).flatten(0, 1)
        return shape + 0.5 * functional.cross_entropy(logits, categories.flatten())

    def _caption_loss(self, features, rows):
        ids, labels, mask = self.texts.batch([self.train.captions[row] for row in rows])
        decoder = self.model.text_decoder
        logits = decoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=features
        ).logits
        return functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )

    @torch.no_grad()
    def _update_average(self):
        decay = min(_AVERAGE_DECAY, (self.step + 1) / (self.step + 10))
        state = self.model.state_dict()
        torch._foreach_lerp_(
            [self.average[name] for name in state], list(state.values()), 1 - decay
        )

    @torch.no_grad()
    def evaluate(self, captions):
        """Share of right attributes on the validation pictures, and of whole captions if asked."""
        self.model.eval()
        right, generated = torch.zeros(len(ATTRIBUTES)), []
        count = len(self.validation.pictures)
        for start in range(0, count, 250):
            part = slice(start, start + 250)
            pixels = pixel_values(self.validation.pictures[part])
            features = self.model.vision_model(pixels).last_hidden_state
            found = torch.stack([logits.argmax(1) for logits in self.heads(features)], 1)
            right += (found == self.validation.labels[part]).sum(0)
            if captions:
                generated += self.model.generate(pixel_values=pixels, max_new_tokens=24).tolist()
        self.model.train()
        result = dict(zip(ATTRIBUTES, (right / count).tolist(), strict=True))
        if captions:
            texts = ([i for i in ids[1:] if i not in (PAD_ID, SEP_ID)] for ids in generated)
            exact = [text == true for text, true in zip(texts, self.validation.captions)]
            result["exact_caption"] = float(np.mean(exact))
        return result

    def save_checkpoint(self):
        """Writes weights, heads and average to work/checkpoint.pt."""
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "average": self.average,
        }
        torch.save(state, self.args.work / "checkpoint.pt")

    def keep_better_weights(self):
        """Evaluates the raw and the averaged weights and leaves the better ones in the model."""
        raw_result = self.evaluate(captions=True)
        raw = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        average_result = self.evaluate(captions=True)
        raw_is_better = raw_result["exact_caption"] > average_result["exact_caption"]
        if raw_is_better:
            self.model.load_state_dict(raw)
        kept = "raw" if raw_is_better else "average"
        return {"raw": raw_result, "average": average_result, "kept": kept}


def _decay_groups(parameters, is_text):
    """Weight decay for matrices only, not for biases and norms."""
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.05, "is_text": is_text},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0, "is_text": is_text},
    ]


def run(trainer, args):
    """Trains for args.steps steps or args.minutes minutes; returns the seconds taken."""
    started = time.monotonic()
    losses = []
    trainer.model.train()
    while True:
        seconds = time.monotonic() - started
        progress = trainer.step / args.steps if args.steps else seconds / 60 / args.minutes
        if progress >= 1:
            return seconds
        losses.append(trainer.train_step(progress))
        if trainer.step % _REPORT_EVERY == 0:
            attributes, captions, patches = np.mean(losses[-_REPORT_EVERY:], 0)
            print(
                f"step {trainer.step}, {seconds:.0f} s, {progress:.1%}: attributes "
                f"{attributes:.3f}, captions {captions:.4f}, patches {patches:.3f}",
                flush=True,
            )
        if trainer.step % _EVALUATE_EVERY == 0:
            full = trainer.joint_from is not None and trainer.step % (2 * _EVALUATE_EVERY) == 0
            print("validation", trainer.evaluate(full), flush=True)
            trainer.save_checkpoint()


def parse_arguments():
    parser = argparse.ArgumentParser(description="Train the small BLIP captioner.")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int)
    length.add_argument("--minutes", type=float)
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder of the pictures")
    parser.add_argument("--out", type=Path, default=Path("model"), help="folder of the model")
    parser.add_argument("--pictures", type=int, help="use only the first so many pictures")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--muon-learning-rate", type=float, default=4e-3)
    parser.add_argument("--joint-from", type=float, default=0.6085, help="when the text joins, 0 to 1")
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--vision-hidden", type=int, default=128)
    parser.add_argument("--vision-layers", type=int, default=4)
    parser.add_argument("--text-hidden", type=int, default=128)
    parser.add_argument("--text-layers", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def main():
    args = parse_arguments()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    trainer = Trainer(args)
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    print(f"{parameters} parameters, {len(trainer.train.pictures)} pictures", flush=True)
    seconds = run(trainer, args)
    report = {
        "arguments": {name: str(value) for name, value in vars(args).items()},
        "steps": trainer.step,
        "joint_from_step": trainer.joint_from,
        "parameters": parameters,
        "train_seconds": round(seconds),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        **trainer.keep_better_weights(),
    }
    trainer.model.save_pretrained(args.out)
    (args.work / "train.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
