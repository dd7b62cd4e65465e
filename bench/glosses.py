"""Real short English texts for the benchmarks: the glosses of WordNet 3.0.

They are read from the files data.{noun,verb,adj,adv} of Debian's package
wordnet-base; format: the manual page wndb(5).
"""

import random
import re
from pathlib import Path

PARTS = ("noun", "verb", "adj", "adv")
SEED = 20


class MissingGlosses(Exception):
    """The folder does not hold WordNet's data files."""


def read(folder):
    """All glosses as "word: gloss", in an order that is shuffled but always the same.

    Shuffled, so that the first n are a fair sample of all. About 117,000 texts.
    """
    texts = []
    for part in PARTS:
        file = Path(folder) / f"data.{part}"
        if not file.is_file():
            raise MissingGlosses(f"{file} is missing; Debian's package wordnet-base has it")
        with file.open(encoding="latin-1") as lines:
            # The licence at the head of each file is indented.
            texts += [text_of(line) for line in lines if not line.startswith("  ")]
    texts = sorted(set(texts))
    random.Random(SEED).shuffle(texts)
    return texts


def text_of(line):
    """ "word: gloss" of a synset's line, without the examples that follow the gloss."""
    fields, _, gloss = line.partition("|")
    word = re.sub(r"\((a|p|ip)\)$", "", fields.split()[4]).replace("_", " ")
    meaning, _, _ = gloss.partition('; "')
    return f"{word}: {meaning.strip()}"
