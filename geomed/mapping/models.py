"""Anything that `geomed map` takes as a model: a run, a checkpoint of one, or an exported file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from geomed.mapping.facts import Trained
from geomed.mapping.model_files import open_onnx, open_pt2
from geomed.mapping.network import autocast, runner
from geomed.mapping.runs import open_run

if TYPE_CHECKING:
    import torch


def load_model(path: str | Path, *, device: torch.device, precision: str = "32", threads: int | None = None) -> Trained:
    """Load a model to map with.

    Args:
        path: a run's folder (its best checkpoint, else its last), a checkpoint in one, or a ``.pt2`` or ``.onnx`` file
            of `geomed export`.
        device: where it computes, and where batches are; an ONNX file computes on the CPU.
        precision: "32", or "bf16" and "fp16" for products in half precision (autocast).
        threads: those of ONNX Runtime; None: as many as torch takes.

    Raises:
        ValueError: there is no such model, or it is broken; one line says what and the way out.
    """
    path = Path(path)
    autocast(device, precision)  # refuses a precision that is none, before anything is read
    if path.is_file() and path.suffix == ".pt2":
        return open_pt2(path, device=device, precision=precision)
    if path.is_file() and path.suffix == ".onnx":
        return open_onnx(path, precision=precision, threads=threads)
    run = open_run(path)
    call = runner(run.network.to(device), device=device, precision=precision)
    fingerprint = hashlib.sha256(f"{run.fingerprint} precision {precision}".encode()).hexdigest()
    return Trained.of(run.facts, call, fingerprint=fingerprint)
