"""Heads: tokens in, logits out."""
