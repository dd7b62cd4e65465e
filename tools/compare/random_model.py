"""Write a model of full size with random weights: a complete directory, as a hub has it.

usage: random_model.py KIND OUTPUT_DIRECTORY [--tokenizer DIRECTORY] [--dtype float32] [--seed 1]

Its sizes, files and speed are those of a real model, its answers are noise. All weights are drawn so that states keep
their size from layer to layer, biases and normalisations included: a part that is left out or done twice shows.

Encoders are in the layout of sentence-transformers. With --tokenizer the vocabulary of WordPiece models (BERT,
DistilBERT, MPNet, BLIP) is that of the BERT model there (its tokenizer.json), so that texts have as many tokens as
usual; without it words are made up of syllables. RoBERTa and XLM-RoBERTa get a tokenizer of few words and all letters.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import (
    BertConfig,
    BertModel,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))
import tiny_tokenizers  # noqa: E402

BERT_SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# As in the vocabulary of BERT: the padding first, the other special tokens at 100.
BERT_START = ["[PAD]", *(f"[unused{index}]" for index in range(99)), *BERT_SPECIAL]
BERT_NAMES = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ROBERTA_NAMES = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}


@dataclass
class Kind:
    """How a model of a kind is made."""

    model: Callable[[], PreTrainedModel]
    # From the vocabulary of a BERT model.
    tokenizer: Callable[[list[str]], Tokenizer]
    tokenizer_config: dict
    # Of encoders: longest text in tokens, and pooling.
    max_tokens: int = 0
    pooling: str = "mean"


def bert_vocabulary(directory: Path | None) -> list[str]:
    """30,522 tokens in the order of their ids."""
    if directory is not None:
        vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
        return sorted(vocabulary, key=vocabulary.get)
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    syllables = [a + b for a, b in itertools.product("bcdfghjklmnprstvwz", "aeiou")]
    words = tiny_tokenizers.WORDS + syllables + [a + b for a, b in itertools.product(syllables, syllables)]
    words += [a + b for a, b in itertools.product(words[-8100:], syllables[:3])]
    tokens = dict.fromkeys(BERT_START + letters + [f"##{piece}" for piece in letters + syllables] + words)
    return list(tokens)[:30522]


def word_piece(vocabulary: list[str], unknown: str, begin: str, end: str, padding: str, mask: str, further: tuple[str, ...] = ()) -> Tokenizer:
    """A tokenizer of lower-cased texts; ids follow the order of `vocabulary`."""
    return tiny_tokenizers.word_piece_of(vocabulary, [padding, unknown, begin, end, mask, *further], unknown, begin, end, mask, True)


def bert_tokenizer(vocabulary: list[str]) -> Tokenizer:
    return word_piece(vocabulary, "[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")


def mpnet_tokenizer(vocabulary: list[str]) -> Tokenizer:
    start = ["<s>", "<pad>", "</s>", "<unk>"]
    return word_piece(start + vocabulary + ["<mask>"], "[UNK]", "<s>", "</s>", "<pad>", "<mask>")


def blip_tokenizer(vocabulary: list[str]) -> Tokenizer:
    return word_piece([*vocabulary, "[DEC]", "[ENC]"], "[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", ("[DEC]", "[ENC]"))


def blip(vision: dict) -> BlipForConditionalGeneration:
    return BlipForConditionalGeneration(BlipConfig(vision_config=vision, text_config={"num_attention_heads": 12}))


def kinds() -> dict[str, Kind]:
    lower = {"do_lower_case": True, "model_max_length": 512}
    bert = {"tokenizer_class": "BertTokenizer", **lower, **BERT_NAMES}
    mpnet = {"tokenizer_class": "MPNetTokenizer", **lower, **ROBERTA_NAMES, "unk_token": "[UNK]"}
    roberta = {"model_max_length": 512, **ROBERTA_NAMES}
    byte_pairs = lambda _: tiny_tokenizers.byte_pairs(ROBERTA_SPECIAL, "<unk>", "<s>", "</s>", "<mask>", False)
    unigram = lambda _: tiny_tokenizers.unigram(ROBERTA_SPECIAL, "<unk>", "<s>", "</s>", "<mask>")
    small = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
    xlm = {"vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    large = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24, "intermediate_size": 4096}
    return {
        "minilm": Kind(lambda: BertModel(BertConfig(num_hidden_layers=6, **small), False), bert_tokenizer, bert, 256),
        "bge-small": Kind(lambda: BertModel(BertConfig(num_hidden_layers=12, **small), False), bert_tokenizer, bert, 512, "cls"),
        "bert-base": Kind(lambda: BertModel(BertConfig(), False), bert_tokenizer, bert, 512, "cls"),
        "distilbert-base": Kind(lambda: DistilBertModel(DistilBertConfig()), bert_tokenizer, {**bert, "tokenizer_class": "DistilBertTokenizer"}, 512),
        "mpnet-base": Kind(
            lambda: MPNetModel(MPNetConfig(vocab_size=30527, max_position_embeddings=514, layer_norm_eps=1e-5), False), mpnet_tokenizer, mpnet, 384
        ),
        "roberta-base": Kind(
            lambda: RobertaModel(RobertaConfig(**{**xlm, "vocab_size": 50265}), False), byte_pairs, {"tokenizer_class": "RobertaTokenizer", **roberta}, 512
        ),
        "xlm-roberta-base": Kind(lambda: XLMRobertaModel(XLMRobertaConfig(**xlm), False), unigram, {"tokenizer_class": "XLMRobertaTokenizer", **roberta}, 512),
        "xlm-roberta-large": Kind(lambda: XLMRobertaModel(XLMRobertaConfig(**xlm, **large), False), unigram, {"tokenizer_class": "XLMRobertaTokenizer", **roberta}, 512),
        "blip-base": Kind(lambda: blip({}), blip_tokenizer, {**bert, "bos_token": "[DEC]"}),
        "blip-large": Kind(lambda: blip(large), blip_tokenizer, {**bert, "bos_token": "[DEC]"}),
    }


@torch.no_grad()
def randomise(model: PreTrainedModel, seed: int) -> None:
    """Draws all parameters."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.normal_(generator=draw)
        if parameter.dim() == 1:
            # Normalisations scale by about 1, biases shift by about 0.
            is_scale = name.endswith("weight")
            parameter.mul_(0.1).add_(1.0 if is_scale else 0.0)
        elif "embedding" in name.lower() and "patch" not in name:
            parameter.mul_(0.1)
        elif "relative_attention_bias" not in name:
            parameter.div_(parameter[0].numel() ** 0.5)


def write_json(path: Path, value: dict | list) -> None:
    path.write_text(json.dumps(value, indent=1))


def write_encoder_layout(folder: Path, kind: Kind, width: int) -> None:
    """The files that sentence-transformers adds to those of transformers."""
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(folder / "1_Pooling/config.json", {"embedding_dimension": width, "pooling_mode": kind.pooling})
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    entries = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"} for index, (path, name) in enumerate(modules)
    ]
    write_json(folder / "modules.json", entries)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": kind.max_tokens, "do_lower_case": False})


def write_model(kind: Kind, folder: Path, tokenizer: Path | None, dtype: torch.dtype, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model = kind.model().eval()
    randomise(model, seed)
    model.to(dtype).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    kind.tokenizer(bert_vocabulary(tokenizer)).save(str(folder / "tokenizer.json"), pretty=False)
    write_json(folder / "tokenizer_config.json", kind.tokenizer_config)
    if isinstance(model, BlipForConditionalGeneration):
        BlipImageProcessorPil().save_pretrained(folder)
    else:
        write_encoder_layout(folder, kind, model.config.hidden_size)


def main() -> None:
    known = kinds()
    parser = argparse.ArgumentParser(description="Write a model of full size with random weights.")
    parser.add_argument("kind", choices=known)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="directory of a BERT model, for its vocabulary")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    write_model(known[args.kind], args.output, args.tokenizer, getattr(torch, args.dtype), args.seed)


if __name__ == "__main__":
    main()
