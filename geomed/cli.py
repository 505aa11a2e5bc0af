"""The command line: `geomed`."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from geomed import __version__
from geomed.training_runs import NULL, check_checkpoint, config_name, config_paths, ended_by, going_on, plain, quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lightning import Trainer

HELP = """\
usage: geomed COMMAND [OPTIONS]

Adapt large vision backbones to satellites and scans, with few labels and few trained parameters.

commands:
  demo         simulate two regions and two years, train on one, adapt to the other, write map and report
  demo scans   simulate patients of three sites, train at one, adapt to the others, write a report
  pretrain     let a backbone go on learning from your own images, without labels
  fit          train what a config describes
  validate     score on the validation part
  test         score on the test part, write metrics.json
  predict      write georeferenced maps; of a classification predictions.csv
  report       write a page about one classification, or several side by side
  map          map any scenes with a trained model: any size, many at once, resumable, on one machine or many
  export       write a trained model as one file, for torch.export or ONNX
  sensitivity  choose which weights to train within a budget, for the adapter SPT
  adapters     list the adapters: what each adds and where, what it trains, whether it merges

Every command tells its options with --help; pretrain, fit, validate, test and predict read --config FILE.YAML and keep
their run in runs/<name of the file> (or --trainer.default_root_dir DIR). What was interrupted goes on with --ckpt_path
last.
A config whose model has the class_path Classification learns labels of whole images (fit --model.help Classification);
fit and test --baselines then do the same for a linear probe and a small convolutional network, in folders beside.

options:
  -h, --help   show this
  --version    show the version
"""
OWN = {
    "demo": "geomed.demo",
    "pretrain": "geomed.pretraining_command",
    "report": "geomed.report",
    "map": "geomed.mapping.command",
    "export": "geomed.mapping.export",
    "sensitivity": "geomed.sensitivity",
    "adapters": "geomed.adapters_command",
}
TRAINER = ("fit", "validate", "test", "predict")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `geomed`; returns the exit code.

    0: done; 2: bad input, one line says what; 3: some scenes could not be mapped; 130 and 143: interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in {"-h", "--help"}:
        print(HELP, end="")
        return 0 if given else 2
    if given[0] == "--version":
        print(f"geomed {__version__}")
        return 0
    command, rest = given[0], given[1:]
    if command in TRAINER:
        return _told(lambda: _with_baselines(command, rest))
    if command in OWN:
        return _told(lambda: _own(command, rest))
    if command.startswith("-") and any(name in given for name in TRAINER):
        name = next(name for name in TRAINER if name in given)
        return _refuse(f"the command comes first: geomed {name} {' '.join(word for word in given if word != name)}")
    known = ", ".join([*OWN, *TRAINER])
    return _refuse(f"there is no command {command!r}; the commands are {known} (see geomed --help)")


def _refuse(message: str) -> int:
    print(f"geomed: error: {message}", file=sys.stderr)
    return 2


def _told(run: Callable[[], int]) -> int:
    """Run a command; bad input ends in one line instead of a traceback."""
    if os.environ.get("GEOMED_TRACEBACK"):
        return run()
    try:
        return run()
    except (ValueError, OSError) as error:
        return _refuse(f"{plain(str(error))} (GEOMED_TRACEBACK=1 shows where)")
    except TypeError as error:
        if NULL not in str(error):
            raise
        return _refuse(f"{plain(str(error))} (GEOMED_TRACEBACK=1 shows where)")
    except UnpicklingError as error:
        line = str(error).strip().partition("\n")[0]
        return _refuse(f"the checkpoint holds more than tensors and numbers, and is not read: {line}")
    except KeyboardInterrupt:
        print("geomed: interrupted", file=sys.stderr)
        return 130


def _own(command: str, rest: Sequence[str]) -> int:
    """A command that is not one of LightningCLI's."""
    code: int = import_module(OWN[command]).main(rest)  # late: they import torch
    return code


def _names_a_model(rest: Sequence[str]) -> bool:
    """Whether a config, or an option, says which class the model is; without that it is a Segmentation."""
    import yaml

    if any(word.partition("=")[0] in {"--model", "--model.class_path", "--model.help"} for word in rest):
        return True
    for path in config_paths(rest):
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue  # the parser says what is wrong with it
        if isinstance(config, dict) and isinstance(config.get("model"), dict) and "class_path" in config["model"]:
            return True
    return False


def _with_baselines(command: str, rest: Sequence[str]) -> int:
    """The run, and where `--baselines` asks for it the two that it has to beat."""
    wanted = "--baselines" in rest
    words = [word for word in rest if word != "--baselines"]
    if wanted and command not in {"fit", "test"}:
        raise ValueError(f"baselines are fitted and tested; leave --baselines out of geomed {command}")
    if wanted and not _names_a_model(words):
        raise ValueError("--baselines is for a Classification: a config with model.class_path; leave it out")
    code, config = _lightning(command, words)
    if code:
        return code
    folders = [Path(config["trainer"]["default_root_dir"])]
    if not wanted:
        return _page(command, folders)
    import yaml

    from geomed.tasks.baselines import SUFFIXES, baseline  # late: imports nothing heavy, but its package does

    for suffix in SUFFIXES:
        changed = baseline(config, suffix)
        path = Path(changed["trainer"]["default_root_dir"]) / f"{command}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(changed, sort_keys=False), encoding="utf-8")
        print(f"geomed: {command} of the baseline {suffix}")
        code, _ = _lightning(command, ["--config", str(path)])
        if code:
            return code
        folders.append(path.parent)
    return _page(command, folders)


def _page(command: str, folders: Sequence[Path]) -> int:
    """After the test of a classification the page of its run, with its baselines beside it."""
    if command != "test" or not (folders[0] / "evaluation" / "setup.json").is_file():
        return 0
    from geomed.report import main as report  # late: imports numpy

    return report([*map(str, folders), "--out", str(folders[0] / "report.html")])


def _lightning(command: str, rest: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """One LightningCLI for fit, validate, test and predict; returns the exit code and the config as it was parsed."""
    # late: these import torch
    import yaml
    from jsonargparse import ArgumentError
    from lightning.pytorch import LightningModule
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.loggers import CSVLogger

    import geomed.public  # noqa: F401  (so that configs may name every class shortly)
    from geomed.data.datamodule import DataModule
    from geomed.evaluation.labelled_cases import LabelledCases
    from geomed.inference.maps import MapsCallback
    from geomed.tasks.adapter_export import AdapterExport
    from geomed.tasks.allocation import SparsityAllocation
    from geomed.tasks.best_checkpoint import BestCheckpoint
    from geomed.tasks.classification import Classification
    from geomed.tasks.segmentation import Segmentation

    quiet()
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # a checkpoint holds tensors and numbers, and runs nothing
    root = Path("runs") / config_name(rest)

    class Command(LightningCLI):
        """Keeps each run in one folder, where `--ckpt_path last` finds it again."""

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.set_defaults(
                {"trainer.default_root_dir": str(root), "trainer.log_every_n_steps": 1}
                | {"trainer.max_epochs": 20, "trainer.enable_model_summary": False}
            )

        def instantiate_trainer(self, **given: Any) -> Trainer:  # noqa: ANN401  (Lightning's signature)
            chosen = self.config_init[command]["trainer"]
            folder = Path(chosen["default_root_dir"])
            monitor, checkpoint, maps = "val/macro_f1", ModelCheckpoint, [MapsCallback()]
            if isinstance(self.model, Classification):
                source = self.datamodule.source
                grades = isinstance(source, LabelledCases) and source.ordered
                monitor, checkpoint, maps = "val/quadratic_kappa" if grades else "val/auroc", BestCheckpoint, []
                if command != "fit" and self.config_init[command]["ckpt_path"] is None:
                    self.config_init[command]["ckpt_path"] = _best(folder, loaded=self.model.loaded)
            check_checkpoint(command, self.config_init[command]["ckpt_path"], folder)
            self.trainer_defaults["callbacks"] = [
                checkpoint(
                    dirpath=folder / "checkpoints",
                    filename="best",
                    monitor=None if chosen["limit_val_batches"] == 0 else monitor,
                    mode="max",
                    save_last=True,
                    enable_version_counter=False,
                ),
                LearningRateMonitor("step"),
                AdapterExport(),
                SparsityAllocation(),
                *maps,
            ]
            if chosen["logger"] is None:
                given["logger"] = CSVLogger(folder, name="logs")
            return super().instantiate_trainer(**given)

    named = _names_a_model(rest)
    try:
        run = Command(
            LightningModule if named else Segmentation,
            DataModule,
            subclass_mode_model=named,
            args=[command, *rest],
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
        print(f"geomed: stopped; go on with: {going_on(command, rest)}", file=sys.stderr)
        return 128 + number, {}
    config: dict[str, Any] = yaml.safe_load(run.parser.dump(run.config, skip_none=False))[command]
    return 0, config


def _best(folder: Path, *, loaded: bool) -> str | None:
    """The best checkpoint of a run, for what is done after it; None where the config itself brings weights.

    Raises:
        ValueError: there is neither; a head of random weights would be scored.
    """
    path = folder / "checkpoints" / "best.ckpt"
    if path.is_file():
        return str(path)
    if loaded:
        return None
    raise ValueError(f"{folder}: the run has no checkpoint yet; run geomed fit first, or give --ckpt_path")


if __name__ == "__main__":
    sys.exit(main())
