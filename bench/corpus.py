"""Vectors to index and to search for: embedded glosses, or a file's."""

import hashlib
import os
import sys
from pathlib import Path

import database
import glosses
import numpy as np

ARRAY = 1024
SAVE_EVERY = 8 * ARRAY


def embedded_glosses(connection, wordnet, model, threads, cache, count):
    """Embeddings of the first `count` glosses (None: of all), float32 (count, dimensions).

    They are kept in the folder `cache`, in a file whose name depends on texts
    and weights; only those that are not there yet are embedded, through SQL.
    """
    texts = glosses.read(wordnet)
    digest = hashlib.sha256("\n".join(texts).encode())
    digest.update((Path(model) / "model.safetensors").read_bytes())
    file = Path(cache) / f"glosses-{digest.hexdigest()[:12]}.npy"
    vectors = np.load(file) if file.exists() else None
    known = 0 if vectors is None else len(vectors)
    texts = texts[:count]
    if known < len(texts):
        database.start_model_server(connection, model, threads)
        parts = [] if vectors is None else [vectors]
        for start in range(known, len(texts), SAVE_EVERY):
            parts += embed(connection, texts, start, min(start + SAVE_EVERY, len(texts)))
            vectors = np.concatenate(parts)
            save(file, vectors)
    return vectors[: len(texts)]


def embed(connection, texts, start, end):
    """Embeddings of texts[start:end], in arrays; says how far it is."""
    for place in range(start, end, ARRAY):
        yield database.embed_batch(connection, texts[place : min(place + ARRAY, end)])
        print(
            f"\r  embedded {min(place + ARRAY, end):,} of {len(texts):,} glosses",
            end="",
            file=sys.stderr,
        )
    if end == len(texts):
        print(file=sys.stderr)


def save(file, vectors):
    """Writes the file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.stem}.{os.getpid()}.new.npy")
    np.save(new, vectors)
    new.replace(file)


def split(vectors, queries):
    """Queries (the first ones) and the rows to index, which do not contain them."""
    return vectors[:queries], vectors[queries:]
