"""Builds the WordPiece tokenizer and the preprocessor's files, laid out like BLIP's.

    python -m demo_captioner.tokenizer model

BLIP's tokenizer is bert-base-uncased with [DEC] and [ENC] added. This one has
the same special ids and layout and a few hundred words.
"""

import argparse
import json
from pathlib import Path

from .catalogue import BACKGROUNDS, CATEGORIES, COLOURS, PATTERNS
from .dataset import PICTURE_SIZE

# Ids 0, 1 to 99 and 100 to 103 as in BERT.
_LEADING = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
PAD_ID, CLS_ID, SEP_ID = 0, 101, 102

# Prompts that the training puts before captions; the first is the usual one.
PROMPTS = [
    "a photo of",
    "a picture of",
    "an image of",
    "a photograph of",
    "a product photo of",
    "a close up of",
    "there is",
    "this is",
    "a shop picture showing",
    "the product is",
    "here is",
    "a studio photo of",
]
# Further words, so that other prompts are not all unknown.
_EXTRA = """
    the this that these those is are was be with and or in at to for from by it its there here what
    which who how one two three pair photo picture image photograph product close up view showing
    shows shop studio item items sale new old small large big little colour color colours shoe shoes
    shirt shirts jacket coat bag bags cup glass glasses table desk person man woman people wearing
    holding standing sitting front back side top bottom left right light dark bright pale plain
    pattern patterned stripes dots made wood metal leather cotton plastic clothing clothes furniture
    kitchen accessories accessory home office store online catalogue catalog sneakers boots sandals
    heels dresses skirts hats caps handbags backpacks mugs teapots bottles watches chairs sofas lamps
    umbrellas describe caption detailed short of on an a no not very style fashion women men girl boy
    child kids dog cat room floor wall sky car street food
""".split()
_PREFIXES = "re un pre sh ch th st tr br cl pl gr bl cr fl sl ph wh qu".split()
_SUFFIXES = """
    es ed ing er ers ly al ion able ness ment en le et an in on or ar at it st th nd ck ll
""".split()
_LETTERS, _DIGITS = "abcdefghijklmnopqrstuvwxyz", "0123456789"
_PUNCTUATION = [*"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", *"£€°–—’“”…"]


def vocabulary():
    """All pieces in the order of their ids; [DEC] (BOS) and [ENC] come last."""
    phrases = [*CATEGORIES, *COLOURS, *PATTERNS, *BACKGROUNDS, *PROMPTS, "background"]
    own = " ".join(phrases).replace("-", " ").split()
    words = dict.fromkeys(word for word in [*own, *_EXTRA, *_PREFIXES] if len(word) > 1)
    characters = ["##" + character for character in _DIGITS + _LETTERS]
    pieces = [*_LEADING, *_PUNCTUATION, *_DIGITS, *_LETTERS, *characters, *words]
    pieces += ["##" + suffix for suffix in _SUFFIXES]
    assert len(pieces) == len(set(pieces))
    return [*pieces, "[DEC]", "[ENC]"]


def build_tokenizer():
    """The tokenizer, of the `tokenizers` package."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers, processors

    pieces = vocabulary()
    ids = {piece: i for i, piece in enumerate(pieces[:-2])}
    tokenizer = Tokenizer(
        models.WordPiece(
            ids, unk_token="[UNK]", max_input_chars_per_word=100, continuing_subword_prefix="##"
        )
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS_ID), ("[SEP]", SEP_ID)],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens(
        [AddedToken(piece, normalized=False, special=True) for piece in _SPECIAL]
    )
    assert [tokenizer.id_to_token(i) for i in range(len(pieces))] == pieces
    return tokenizer


def write_model_files(folder):
    """Writes the tokenizer's files and preprocessor_config.json into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = vocabulary()
    build_tokenizer().save(str(folder / "tokenizer.json"), pretty=True)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    special = {
        "additional_special_tokens": ["[ENC]"],
        "bos_token": "[DEC]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
        "pad_token": "[PAD]",
        "sep_token": "[SEP]",
        "unk_token": "[UNK]",
    }
    _write(folder / "special_tokens_map.json", special)
    _write(folder / "tokenizer_config.json", _tokenizer_config(pieces, special))
    _write(folder / "preprocessor_config.json", _preprocessor_config())


def _tokenizer_config(pieces, special):
    flags = {"lstrip": False, "normalized": False, "rstrip": False}
    flags |= {"single_word": False, "special": True}
    added = {str(pieces.index(piece)): {"content": piece, **flags} for piece in _SPECIAL}
    config = {
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": True,
        "do_basic_tokenize": True,
        "do_lower_case": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 512,
        "never_split": None,
        "processor_class": "BlipProcessor",
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "tokenizer_class": "BertTokenizer",
        **special,
    }
    return dict(sorted(config.items()))


def _preprocessor_config():
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "BlipImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "BlipProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": PICTURE_SIZE, "width": PICTURE_SIZE},
    }


def _write(file, content):
    file.write_text(json.dumps(content, indent=2))


def main():
    parser = argparse.ArgumentParser(description="Write tokenizer and preprocessor files.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("model"))
    write_model_files(parser.parse_args().folder)


if __name__ == "__main__":
    main()
