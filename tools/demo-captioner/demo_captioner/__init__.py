"""Draws product pictures and trains a small BLIP captioner on them."""
