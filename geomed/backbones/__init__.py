"""Backbones: pixels in, tokens out."""
