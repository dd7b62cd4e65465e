"""Vectors to index and to search for: files of others, embedded glosses, or drawn ones.

Rows and queries are float32, one vector a row. Rows may lie in a mapped file
that is larger than memory.
"""

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Rows that are drawn, or compared with the queries, at once.
CHUNK = 50_000
# Rows whose inner product is computed with single precision may come in the
# wrong order where they are this close; so many more are looked at in double.
SPARE = 20
# A score this little below the tenth, relative to the largest, is a tie with it.
TIE = 1e-6
# What filters ask for: "bucket < percentage".
BUCKETS = 100
SEED = 20
# Length of what is added to a vector to make another one, in lengths of it.
NOISE = 0.3


class BadData(Exception):
    """A file does not hold vectors in a way that is known here."""


@dataclass
class Data:
    """What is indexed and searched.

    rows: (n, dimensions), queries: (m, dimensions), both float32. `metric` is
    "ip" (inner product, greatest first) or "l2" (distance, least first).
    """

    name: str
    source: str
    rows: np.ndarray
    queries: np.ndarray
    metric: str

    def __len__(self):
        return len(self.rows)

    @property
    def dimensions(self):
        return self.rows.shape[1]

    @property
    def size(self):
        """Bytes of the vectors."""
        return 4 * len(self.rows) * self.dimensions

    def chunks(self):
        """(number of the first row, rows) in pieces that fit in memory."""
        for start in range(0, len(self.rows), CHUNK):
            yield start, np.ascontiguousarray(self.rows[start : start + CHUNK])

    def words(self):
        """What this is, as a condition of a report."""
        metric = {"ip": "inner product", "l2": "Euclidean distance"}[self.metric]
        return (
            f"{len(self):,} {self.source}, {self.dimensions} dimensions; "
            f"{len(self.queries):,} others as queries; {metric}"
        )


def bucket_of(ids):
    """The bucket 0..99 of each row number: a hash, so that filters do not follow the table's order."""
    mixed = (np.asarray(ids, np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed >> np.uint64(33)) % np.uint64(BUCKETS)).astype(np.int16)


def read_fvecs(file):
    """Vectors of a .fvecs file, (n, dimensions): each is its dimensions as int32 and its float32s."""
    raw = np.memmap(file, np.int32, "r")
    dimensions = int(raw[0]) if len(raw) else 0
    if dimensions <= 0 or len(raw) % (dimensions + 1):
        raise BadData(f"{file} is no .fvecs file")
    table = raw.reshape(-1, dimensions + 1)
    if (table[:, 0] != dimensions).any():
        raise BadData(f"{file} has vectors of different dimensions")
    return table[:, 1:].view(np.float32)


def read_npy(file):
    """Vectors of a .npy file, float of shape (n, dimensions)."""
    array = np.load(file, mmap_mode="r")
    if array.ndim != 2 or array.dtype.kind != "f":
        raise BadData(f"{file} has {array.dtype} of shape {array.shape}, not floats of (n, dimensions)")
    return array


def read_hdf5(file):
    """(rows, queries, metric) of a file of ann-benchmarks: "train", "test" and "distance"."""
    import h5py

    with h5py.File(file) as source:
        if "train" not in source or "test" not in source:
            raise BadData(f"{file} does not hold the datasets train and test")
        rows = source["train"][:].astype(np.float32)
        queries = source["test"][:].astype(np.float32)
        distance = source.attrs.get("distance", "euclidean")
    if distance == "angular":
        return unit(rows), unit(queries), "ip"
    if distance in ("euclidean", "dot"):
        return rows, queries, {"euclidean": "l2", "dot": "ip"}[distance]
    raise BadData(f'{file} is for the distance "{distance}"; angular, euclidean and dot are known')


def unit(vectors):
    """The vectors at length 1; zeros stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)


def split(vectors, queries, rows=None):
    """(rows, queries): the first vectors are queries, the rest rows, which do not contain them."""
    if len(vectors) <= queries:
        raise BadData(f"{len(vectors)} vectors are too few for {queries} queries")
    end = None if rows is None else queries + rows
    return vectors[queries:end], np.asarray(vectors[:queries], np.float32)


def from_file(file, queries, rows, metric):
    """Data of a file; .npy and .fvecs have no queries of their own, so their first vectors are taken."""
    file = Path(file)
    if file.suffix in (".hdf5", ".h5"):
        vectors, asked, metric = read_hdf5(file)
        return Data(file.stem, f"vectors of {file.name}", vectors[:rows], asked[:queries], metric)
    readers = {".npy": read_npy, ".fvecs": read_fvecs}
    if file.suffix not in readers:
        raise BadData(f"{file} is neither .hdf5 nor .fvecs nor .npy")
    kept, asked = split(readers[file.suffix](file), queries, rows)
    return Data(file.stem, f"vectors of {file.name}", kept, asked, metric)


@dataclass(frozen=True)
class Mixture:
    """A clustered distribution on the unit sphere, and how many vectors to draw from it.

    Clusters have random centres of length 1 and weights that fall with the
    rank, like (rank + 10) ** -0.5. A vector is its centre, and a random linear
    map, the cluster's own, of a normal vector of `intrinsic` dimensions, whose
    length is about `spread`, and normal noise of length about `noise` in all
    dimensions; at length 1. Vectors of a number are always the same.

    The clusters are few, so that each is spread over many lists of an inverted
    file, and the neighbours of a vector lie in several, as among real embeddings.
    """

    count: int
    dimensions: int = 768
    clusters: int = 20
    intrinsic: int = 24
    spread: float = 0.8
    noise: float = 0.1
    seed: int = SEED

    def weights(self):
        """Share of each cluster."""
        weights = (np.arange(self.clusters) + 10.0) ** -0.5
        return weights / weights.sum()

    def words(self):
        return (
            f"vectors drawn from {self.clusters:,} clusters of intrinsic dimension {self.intrinsic} "
            f"(seed {self.seed}, spread {self.spread}, noise {self.noise})"
        )

    def draw_into(self, array):
        """Fills the array of shape (count, dimensions), piece by piece."""
        centres = unit(
            np.random.default_rng([self.seed, 0]).standard_normal((self.clusters, self.dimensions))
        )
        for start in range(0, self.count, CHUNK):
            end = min(start + CHUNK, self.count)
            # A generator of its own for each piece: a longer file begins like a shorter one.
            source = np.random.default_rng([self.seed, 1, start])
            owners = source.choice(self.clusters, CHUNK, p=self.weights())[: end - start]
            latent = source.standard_normal((CHUNK, self.intrinsic), np.float32)[: end - start]
            piece = source.standard_normal((end - start, self.dimensions), np.float32)
            piece *= self.noise / np.sqrt(self.dimensions)
            piece += centres[owners]
            for cluster in np.unique(owners):
                mine = owners == cluster
                piece[mine] += latent[mine] @ self.linear_map(cluster)
            array[start:end] = unit(piece)
            print(f"\r  drew {end:,} of {self.count:,} vectors", end="", file=sys.stderr)
        print(file=sys.stderr)

    def linear_map(self, cluster):
        """(intrinsic, dimensions), which gives a standard normal vector the length `spread` on average."""
        source = np.random.default_rng([self.seed, 2, cluster])
        drawn = source.standard_normal((self.intrinsic, self.dimensions), np.float32)
        return drawn * np.float32(self.spread / np.sqrt(self.intrinsic * self.dimensions))


def synthetic(mixture, queries, cache):
    """Data drawn from the mixture, kept as a .npy file in the folder `cache`; queries come from it too."""
    digest = hashlib.sha256(repr(mixture).encode()).hexdigest()[:12]
    file = Path(cache) / f"mixture-{digest}.npy"
    if not file.exists():
        new = file.with_name(f"{file.stem}.{os.getpid()}.new.npy")
        shape = (mixture.count, mixture.dimensions)
        array = np.lib.format.open_memmap(new, "w+", np.float32, shape)
        mixture.draw_into(array)
        array.flush()
        new.replace(file)
    rows, asked = split(read_npy(file), queries)
    return Data("synthetic", mixture.words(), rows, asked, "ip")


def more_rows(data, count, shift=0.0):
    """Further vectors, (count, dimensions): rows of the data, `moved`."""
    result = np.empty((count, data.dimensions), np.float32)
    more_rows_into(result, data, shift)
    return result


def more_rows_into(result, data, shift):
    """Fills an array, which may lie in a file, with further vectors."""
    source = np.random.default_rng([SEED, 3])
    for start in range(0, len(result), CHUNK):
        end = min(start + CHUNK, len(result))
        # Read in order, for the rows may lie in a file too.
        rows = np.array(data.rows[np.sort(source.integers(0, len(data), end - start))], np.float32)
        source.shuffle(rows)
        result[start:end] = moved(rows, data.metric, shift, start)


def moved(vectors, metric, shift, seed):
    """The vectors with normal noise whose length is 0.3 of theirs.

    With a shift each moves by so much of its length too, in one direction that
    is the same for all and always; where inner products count, lengths stay.
    """
    dimensions = vectors.shape[1]
    direction = unit(np.random.default_rng([SEED, 4]).standard_normal((1, dimensions)))
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    change = np.random.default_rng([SEED, 5, seed]).standard_normal(vectors.shape, np.float32)
    change *= np.float32(NOISE / np.sqrt(dimensions))
    result = vectors + length * (change + np.float32(shift) * direction)
    return unit(result) * length if metric == "ip" else result
