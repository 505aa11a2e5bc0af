"""`geomed pretrain`: a backbone goes on learning from images without labels, and leaves an adapter file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

import geomed.public  # noqa: F401  (so that configs may name every class shortly)
from geomed.data.pretraining_data import PretrainingData
from geomed.data.scan_source import ScanSource
from geomed.data.unlabelled_scans import UnlabelledScans
from geomed.tasks.best_checkpoint import BestCheckpoint
from geomed.tasks.pretrained_export import ADAPTER, BACKBONE, PretrainedExport
from geomed.tasks.pretraining import Pretraining
from geomed.tasks.pretraining_picture import PretrainingPicture
from geomed.training_runs import check_checkpoint, config_name, config_paths, ended_by, going_on, quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lightning import Trainer

SETTINGS = "pretraining.json"
"""What a run's folder was made with."""

_TRAINER = (
    "max_epochs",
    "max_steps",
    "precision",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "limit_train_batches",
)
_ELSEWHERE = ("data.workers", "data.in_memory", "data.monitor")  # these change nothing that is learned
_SHOWN = 3


def main(arguments: Sequence[str]) -> int:
    """Run `geomed pretrain`; returns the exit code.

    Raises:
        ValueError: bad input; the message is one line.
    """
    rest = list(arguments)
    if {"-h", "--help"} & set(rest):
        return _run(rest)
    for earlier in _chain(rest):
        folder = _folder_of(earlier)
        if not _finished(folder):
            print(f"geomed: {earlier} comes before; it leaves {folder}")
            code = _run(["--config", str(earlier), *(["--ckpt_path", "last"] if folder.exists() else [])])
            if code:
                return code
    return _run(rest)


def _run(rest: list[str]) -> int:
    quiet()
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # a checkpoint holds tensors and numbers, and runs nothing
    root = Path("runs") / config_name(rest)

    class Command(LightningCLI):
        """Keeps each run in one folder, where `--ckpt_path last` finds it again."""

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_argument(
                "--after", type=str | None, default=None, help="Config of the pre-training that this one goes on from."
            )
            parser.add_argument(
                "--merged", type=bool, default=False, help="Write the whole network, adapters folded in, too."
            )
            parser.set_defaults(
                {"trainer.default_root_dir": str(root), "trainer.log_every_n_steps": 10, "trainer.max_epochs": 20}
                | {"trainer.enable_model_summary": False, "trainer.num_sanity_val_steps": -1}
            )

        def instantiate_trainer(self, **given: Any) -> Trainer:  # noqa: ANN401  (Lightning's signature)
            config = self.config_init["fit"]
            chosen = config["trainer"]
            folder = Path(chosen["default_root_dir"])
            own = yaml.safe_load(self.parser.dump(self.config, skip_none=False))["fit"]
            claim(folder, own)
            check_checkpoint("pretrain", config["ckpt_path"], folder)
            watched = self.datamodule.monitor is not None and chosen["limit_val_batches"] != 0
            self.trainer_defaults["callbacks"] = [
                BestCheckpoint(
                    dirpath=folder / "checkpoints",
                    filename="best",
                    monitor="monitor/knn" if watched else None,
                    mode="max",
                    save_last=True,
                    enable_version_counter=False,
                ),
                LearningRateMonitor("step"),
                PretrainedExport(merged=config["merged"]),
                PretrainingPicture(images=not isinstance(self.datamodule.source, (ScanSource, UnlabelledScans))),
            ]
            if chosen["logger"] is None:
                given["logger"] = CSVLogger(folder, name="logs")
            return super().instantiate_trainer(**given)

    try:
        run = Command(
            Pretraining,
            PretrainingData,
            args=["fit", *rest],
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "geomed", "exit_on_error": False},
        )
    except ArgumentError as error:
        raise ValueError(str(error)) from error
    except SystemExit as error:
        number = ended_by(error)
        if number is None:
            raise
        print(f"geomed: stopped; go on with: {going_on('pretrain', rest)}", file=sys.stderr)
        return 128 + number
    given = run.config["fit"]["model"]["adapter"]
    before = [one for one in (given if isinstance(given, list) else [given]) if isinstance(one, str)]
    _tell(Path(run.trainer.default_root_dir), before)
    return 0


@rank_zero_only
def _tell(folder: Path, before: Sequence[str]) -> None:
    """What to do with what was left; ``before`` are the adapter files that it was learned on."""
    if (folder / ADAPTER).is_file():
        files = ", ".join([*before, str(folder / ADAPTER)])
        print(f"geomed: a config of fit takes it as adapter: [{files}, …], on the same base weights")
    if (folder / BACKBONE).is_file():
        print(f"geomed: a config of fit takes it as weights: {{path: {folder / BACKBONE}, head: false}}")


def _chain(rest: Sequence[str]) -> list[Path]:
    """The configs that come before and are not finished, the first of all first.

    Raises:
        ValueError: one of them comes before itself.
    """
    found: list[Path] = []
    earlier = _earlier(rest)
    while earlier is not None:
        known = [path.resolve() for path in (*config_paths(rest)[-1:], *found)]
        if earlier.resolve() in known:
            raise ValueError(f"{earlier} would come before itself; correct `after`")
        found.insert(0, earlier)
        earlier = None if _finished(_folder_of(earlier)) else _earlier(["--config", str(earlier)])
    return found


def _earlier(rest: Sequence[str]) -> Path | None:
    """The config that comes before, as an option or the last config says."""
    for position, word in enumerate(rest):
        if word.startswith("--after="):
            return Path(word.partition("=")[2])
        if word == "--after" and position + 1 < len(rest):
            return Path(rest[position + 1])
    for path in reversed(config_paths(rest)):
        after = _read(path).get("after")
        if after:
            return Path(str(after))
    return None


def _folder_of(config: Path) -> Path:
    """Where the run of a config lies."""
    trainer = _read(config).get("trainer")
    folder = trainer.get("default_root_dir") if isinstance(trainer, dict) else None
    return Path(folder) if folder else Path("runs") / config.stem


def _read(path: Path) -> dict[str, Any]:
    """A config as it is written; an empty one where it cannot be read, which the parser tells."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def _finished(folder: Path) -> bool:
    return (folder / BACKBONE).is_file() or (folder / ADAPTER).is_file()


def claim(folder: Path, config: Mapping[str, Any]) -> None:
    """Make a folder that of a run, or find that it is.

    Args:
        folder: where the run lies.
        config: as it was parsed.

    Raises:
        ValueError: it holds a run of another config, or nobody can tell of which.
    """
    own = dict(_leaves(_identity(config)))
    path = folder / SETTINGS
    if path.is_file() and (_finished(folder) or any(folder.glob("checkpoints/*.ckpt"))):
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: what this run was made with cannot be read; delete {folder}") from error
        other = [name for name in {**theirs, **own} if theirs.get(name) != own.get(name)]
        if other:
            told = "; ".join(f"{name} {theirs.get(name)} there, {own.get(name)} here" for name in other[:_SHOWN])
            raise ValueError(
                f"{folder} holds a run of another configuration ({len(other)} settings differ: {told}); give another "
                "--trainer.default_root_dir, or delete it"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides what is learned."""
    trainer = {name: config["trainer"].get(name) for name in _TRAINER}
    return {"model": config["model"], "data": config["data"], "trainer": trainer, "seed": config["seed_everything"]}


def _leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Dotted names and plain values."""
    if name.startswith(_ELSEWHERE):
        return
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}".lstrip("."))
    else:
        yield name, value
