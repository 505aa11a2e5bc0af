"""Evaluation: scores, splits and reports."""
