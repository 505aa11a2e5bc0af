"""The best and the last checkpoint of a run, without a word of where the run lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class BestCheckpoint(ModelCheckpoint):
    """Lightning's own writes full paths into every checkpoint, and the path of a home folder names a person.

    Here the checkpoint knows the names of its files; which folder they lie in follows from the run.
    """

    def state_dict(self) -> dict[str, Any]:
        """As Lightning's, with names in place of paths."""
        state = super().state_dict()
        state |= {name: Path(state[name]).name for name in _PATHS}
        state["best_k_models"] = {Path(path).name: score for path, score in state["best_k_models"].items()}
        return state | {"dirpath": ""}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As Lightning's, the names taken for files in this run's folder."""
        folder = Path(self.dirpath or "")
        state = dict(state_dict)
        state |= {name: str(folder / state[name]) if state[name] else "" for name in _PATHS}
        state["best_k_models"] = {str(folder / name): score for name, score in state["best_k_models"].items()}
        super().load_state_dict(state | {"dirpath": self.dirpath})
