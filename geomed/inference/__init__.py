"""Inference: windows in, maps out."""
