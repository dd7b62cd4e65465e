"""What transformers computes on its way to a result, under the names that the example `trace` of sight-models uses.

Encoders: `embeddings`, `layer.N`. Captioners: `vision.embeddings`, `vision.layer.N`, `vision.output`,
`text.embeddings`, `text.layer.N`, `text.logits`; InstructBLIP also `qformer.embeddings`, `qformer.layer.N`,
`projection` and, with a T5, `encoder.layer.N`. Each tensor is (vectors, width), of one text or one picture.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import BlipForConditionalGeneration, InstructBlipForConditionalGeneration, PreTrainedModel


# Options of a generation that a model's generation_config.json may have for us.
OPTIONS = (
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams", "length_penalty", "early_stopping",
    "repetition_penalty", "no_repeat_ngram_size",
)  # fmt: skip


def with_stored_options(directory: Path, options: dict) -> dict:
    """These options over those that the model stores, which `generate` of BLIP does not read by itself.

    A length that is given also replaces what the model has for its other form.
    """
    file = directory / "generation_config.json"
    stored = json.loads(file.read_text()) if file.exists() else {}
    replaced = {"max_length"} if "max_new_tokens" in options else set()
    replaced |= {"min_length"} if "min_new_tokens" in options else set()
    return {name: stored[name] for name in OPTIONS if name in stored and name not in replaced} | options


@contextmanager
def recorded(modules: dict[str, nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """The outputs of modules while they compute. Without batch dimension: the batch must be of one."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            assert tensor.shape[0] == 1 and name not in outputs, f"{name} computed more than one batch of one"
            outputs[name] = tensor[0].detach().clone().contiguous()

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def encoder_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Embeddings and layers of BERT and its relatives, with the names that their traces have."""
    layers = model.transformer.layer if hasattr(model, "transformer") else model.encoder.layer
    return {"embeddings": model.embeddings, **{f"layer.{index}": layer for index, layer in enumerate(layers)}}


@torch.no_grad()
def trace_captioner(model: BlipForConditionalGeneration, pixels: torch.Tensor, ids: list[int]) -> dict[str, torch.Tensor]:
    """The hidden states for one picture, (1, 3, side, side), and these tokens of its caption."""
    vision, text = model.vision_model, model.text_decoder
    modules: dict[str, nn.Module] = {"vision.embeddings": vision.embeddings}
    modules |= {f"vision.layer.{index}": layer for index, layer in enumerate(vision.encoder.layers)}
    modules |= {"text.embeddings": text.bert.embeddings}
    modules |= {f"text.layer.{index}": layer for index, layer in enumerate(text.bert.encoder.layer)}
    with recorded(modules) as outputs:
        states = vision(pixel_values=pixels).last_hidden_state
        mask = torch.ones(states.shape[:-1], dtype=torch.long)
        logits = text(input_ids=torch.tensor([ids]), encoder_hidden_states=states, encoder_attention_mask=mask).logits
    part = lambda begin: {name: state for name, state in outputs.items() if name.startswith(begin)}
    return {**part("vision."), "vision.output": states[0].contiguous(), **part("text."), "text.logits": logits[0].contiguous()}


@torch.no_grad()
def trace_instructed(model: InstructBlipForConditionalGeneration, inputs: dict[str, torch.Tensor], answer: list[int]) -> dict[str, torch.Tensor]:
    """The hidden states for one picture with an instruction, as the processor gives them, and these tokens after it.

    `text.logits` is of the last token of the instruction and of those that follow.
    """
    is_decoder = not model.config.text_config.is_encoder_decoder
    modules: dict[str, nn.Module] = {"vision.embeddings": model.vision_model.embeddings}
    modules |= {f"vision.layer.{index}": layer for index, layer in enumerate(model.vision_model.encoder.layers)}
    modules |= {"qformer.embeddings": model.qformer.embeddings}
    modules |= {f"qformer.layer.{index}": layer for index, layer in enumerate(model.qformer.encoder.layer)}
    modules |= {"projection": model.language_projection}
    if is_decoder:
        modules |= {f"text.layer.{index}": layer for index, layer in enumerate(model.language_model.model.layers)}
        ids = torch.cat([inputs["input_ids"], torch.tensor([answer], dtype=torch.long)], dim=1)
        inputs = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        prompt = ids.shape[1] - len(answer)
    else:
        modules |= {f"encoder.layer.{index}": layer for index, layer in enumerate(model.language_model.encoder.block)}
        modules |= {f"text.layer.{index}": layer for index, layer in enumerate(model.language_model.decoder.block)}
        inputs = {**inputs, "decoder_input_ids": torch.tensor([[model.config.text_config.decoder_start_token_id, *answer]])}
        prompt = 1
    with recorded(modules) as outputs:
        result = model(**inputs)
    vision = result.vision_outputs.last_hidden_state[0].contiguous()
    return {**outputs, "vision.output": vision, "text.logits": result.logits[0, prompt - 1 :].contiguous()}
