"""The captioner's configuration, its start values, and the heads that only the training has."""

import torch
from torch import nn
from transformers import BlipConfig

from .catalogue import BACKGROUNDS, CATEGORIES, COLOURS, PATTERNS
from .dataset import PICTURE_SIZE
from .tokenizer import PAD_ID, SEP_ID

ATTRIBUTES = {
    "category": CATEGORIES,
    "colour": COLOURS,
    "pattern": PATTERNS,
    "background": BACKGROUNDS,
}
_HEAD_SIZE = 32
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1) * 255
_DEVIATION = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1) * 255


def pixel_values(pictures):
    """Pictures (n, height, width, 3) of uint8 as normalised pixels (n, 3, height, width)."""
    pixels = torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).float()
    return (pixels - _MEAN) / _DEVIATION


def configuration(vocabulary_size, vision_hidden, text_hidden, vision_layers, text_layers, patch):
    """BLIP's configuration at a small size; [DEC], the last piece but one, begins a text."""
    text = {
        "vocab_size": vocabulary_size,
        "hidden_size": text_hidden,
        "encoder_hidden_size": vision_hidden,
        "intermediate_size": 4 * text_hidden,
        "projection_dim": text_hidden,
        "num_hidden_layers": text_layers,
        "num_attention_heads": text_hidden // _HEAD_SIZE,
        "max_position_embeddings": 128,
        "bos_token_id": vocabulary_size - 2,
        # Generation ends at [SEP]; the real configuration names 2 here as well.
        "eos_token_id": 2,
        "pad_token_id": PAD_ID,
        "sep_token_id": SEP_ID,
    }
    vision = {
        "hidden_size": vision_hidden,
        "intermediate_size": 4 * vision_hidden,
        "projection_dim": vision_hidden,
        "num_hidden_layers": vision_layers,
        "num_attention_heads": vision_hidden // _HEAD_SIZE,
        "image_size": PICTURE_SIZE,
        "patch_size": patch,
        "initializer_range": 0.02,
    }
    return BlipConfig(
        text_config=text, vision_config=vision, projection_dim=128, image_text_hidden_size=64
    )


class AttributeHeads(nn.Module):
    """Heads on the vision tower that teach it what matters; thrown away after training."""

    def __init__(self, hidden):
        super().__init__()
        self.attributes = nn.ModuleList(
            nn.Linear(2 * hidden, len(names)) for names in ATTRIBUTES.values()
        )
        # For each patch: its 4x4 cells of the silhouette, and a category or the background.
        self.silhouette = nn.Linear(hidden, 16)
        self.patch_category = nn.Linear(hidden, len(CATEGORIES) + 1)

    def forward(self, features):
        """Logits of each attribute from features (batch, 1 + patches, hidden)."""
        pooled = torch.cat([features[:, 0], features[:, 1:].mean(1)], -1)
        return [head(pooled) for head in self.attributes]


@torch.no_grad()
def initialise(model, pictures):
    """PCA-whitened patch projection and 2-D sine positions.

    Much better conditioned than random values, which a short training would
    spend its time on.
    """
    embeddings = model.vision_model.embeddings
    hidden, _, patch, _ = embeddings.patch_embedding.weight.shape
    grid = PICTURE_SIZE // patch
    patches = pixel_values(pictures).unfold(2, patch, patch).unfold(3, patch, patch)
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * patch * patch)
    mean = patches.mean(0)
    patches = patches - mean
    variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    variances, directions = variances.flip(0)[:hidden], directions.flip(1)[:, :hidden]
    projection = (directions / (variances + 0.3 * variances[-1]).sqrt()).T * 0.5
    embeddings.patch_embedding.weight.copy_(projection.reshape(hidden, 3, patch, patch))
    embeddings.patch_embedding.bias.copy_(-projection @ mean)
    embeddings.position_embedding[:, 1:] = _sine_positions(grid, hidden)


def _sine_positions(grid, hidden):
    """Positions (1, grid * grid, hidden): half of the width for rows, half for columns."""
    quarter = hidden // 4
    frequencies = 1 / (30 ** (torch.arange(quarter) / quarter))
    phases = torch.arange(grid).float()[:, None] * frequencies
    line = torch.cat([phases.sin(), phases.cos()], 1)
    rows, columns = line[:, None].expand(grid, grid, -1), line[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], -1).reshape(1, grid * grid, hidden) * 0.3
