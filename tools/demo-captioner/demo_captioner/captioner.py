"""A trained captioner, run by transformers: the reference that other implementations must equal."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
from transformers import BlipForConditionalGeneration, BlipProcessor  # noqa: E402

from .tokenizer import CLS_ID, PAD_ID  # noqa: E402

PROMPT = "a photo of"
MAX_NEW_TOKENS = 24
NUM_BEAMS = 3


class Captioner:
    """Model and processor of a folder in Hugging Face's layout."""

    def __init__(self, folder):
        self.processor = BlipProcessor.from_pretrained(folder)
        self.model = BlipForConditionalGeneration.from_pretrained(folder).eval()
        self.tokenizer = self.processor.tokenizer
        self.begin_id = self.model.config.text_config.bos_token_id
        self.end_id = self.model.config.text_config.sep_token_id

    def generate(self, images, prompt=None, **options):
        """Token ids of each image's caption, prompt included, ended by the end id."""
        text = None if prompt is None else [prompt] * len(images)
        inputs = self.processor(images=images, text=text, return_tensors="pt")
        inputs = {name: value for name, value in inputs.items() if value is not None}
        if "max_length" not in options:
            options["max_new_tokens"] = MAX_NEW_TOKENS
        return [self._ended(ids) for ids in self.model.generate(**inputs, **options).tolist()]

    def text(self, ids):
        """What the decoder prints: "a blue t - shirt"."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def decoded(self, caption):
        """A caption as the decoder would print it."""
        return self.text(self.tokenizer(caption)["input_ids"])

    def words(self, ids):
        """The ids without special ones."""
        return [i for i in ids if i not in (self.begin_id, self.end_id, PAD_ID, CLS_ID)]

    @torch.no_grad()
    def intermediate(self, images):
        """Pixels, vision features and the logits of the first step, for comparisons along the way."""
        pixels = self.processor(images=images, return_tensors="pt")["pixel_values"]
        features = self.model.vision_model(pixels).last_hidden_state
        begin = torch.full((len(images), 1), self.begin_id)
        decoder = self.model.text_decoder
        logits = decoder(input_ids=begin, encoder_hidden_states=features).logits[:, 0]
        return pixels, features, logits

    def _ended(self, ids):
        return ids[: ids.index(self.end_id) + 1] if self.end_id in ids else ids
