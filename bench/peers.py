"""The Python packages that pg_sight is compared with, each in a process of its own.

So a peer's peak memory is its own, and so is the time that it takes: it is
measured in there, without the way of texts and answers between the processes.
"""

import io
import multiprocessing
import os
import time

BATCH = 32


class SentenceTransformers:
    """Embeddings by sentence-transformers on the CPU."""

    def __init__(self, model, threads):
        import sentence_transformers
        import torch

        torch.set_num_threads(threads)
        self.model = sentence_transformers.SentenceTransformer(model, device="cpu")
        self.versions = versions(sentence_transformers, torch)

    def batch(self, texts):
        return self.model.encode(texts, batch_size=BATCH, show_progress_bar=False)

    def single(self, text):
        return self.batch([text])[0]


class Transformers:
    """Captions by BLIP in transformers on the CPU."""

    def __init__(self, model, threads):
        import torch
        import transformers
        from PIL import Image
        from transformers import BlipForConditionalGeneration, BlipProcessor

        torch.set_num_threads(threads)
        self.open = Image.open
        self.no_grad = torch.inference_mode
        self.processor = BlipProcessor.from_pretrained(model)
        self.model = BlipForConditionalGeneration.from_pretrained(model).eval()
        self.versions = versions(transformers, torch)

    def captions(self, pictures, options):
        """Captions of encoded pictures, in one batch."""
        images = [self.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
        inputs = self.processor(images=images, return_tensors="pt")
        with self.no_grad():
            ids = self.model.generate(**inputs, **options)
        captions = self.processor.batch_decode(ids, skip_special_tokens=True)
        return [caption.strip() for caption in captions]


def versions(*packages):
    return ", ".join(f"{package.__name__} {package.__version__}" for package in packages)


class Process:
    """A peer that runs elsewhere; its methods are called by name."""

    def __init__(self, peer, model, threads):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        process = context.Process(
            target=serve, args=(theirs, peer, str(model), threads), daemon=True
        )
        process.start()
        theirs.close()
        self.pids = self.service = [process.pid]
        self.versions = self.receive()

    def call(self, method, *args):
        """Result of the peer's method, and the seconds it took."""
        self.pipe.send((method, args))
        return self.receive()

    def receive(self):
        try:
            answer = self.pipe.recv()
        except EOFError:
            raise RuntimeError("the peer's process ended") from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def serve(pipe, peer, model, threads):
    """Main function of the process: answers until the other end is closed."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        candidate = peer(model, threads)
        pipe.send(candidate.versions)
        while True:
            method, args = pipe.recv()
            start = time.perf_counter()
            result = getattr(candidate, method)(*args)
            pipe.send((result, time.perf_counter() - start))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception as error:
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
