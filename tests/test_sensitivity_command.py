from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import CONFIG

from geomed.adapters import Plan
from geomed.adapters.files import read_adapter
from geomed.cli import main

pytestmark = pytest.mark.filterwarnings("default")  # Lightning's own advice, as in the other tests of the command line


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sensitivity")
    (folder / "tiny.yaml").write_text(CONFIG.format(root=folder / "land"))
    return folder / "tiny.yaml"


@pytest.fixture(autouse=True)
def _stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sensitivity(config: Path, *options: str) -> int:
    return main(["sensitivity", "--config", str(config), "--rank", "2", "--samples", "4", *options])


def test_from_config_to_plan_to_adapter_file(config, capsys):
    assert sensitivity(config, "--budget", "6e2", "--out", "plans/small.json") == 0
    told = capsys.readouterr().out
    plan = Plan.of("plans/small.json")
    assert 0 < plan.trained <= plan.budget == 600
    assert plan.samples == 4
    assert str(plan) in told
    assert plan.table() in told
    assert "plans/small.png" in told
    assert Path("plans/small.png").read_bytes().startswith(b"\x89PNG")
    fit = ["fit", "--config", str(config), "--model.adapter", "SPT", "--model.adapter.plan", "plans/small.json"]
    assert main(fit) == 0
    Path("plans/small.json").unlink()
    (adapter,) = read_adapter("runs/tiny/adapter.safetensors").adapters
    assert adapter.content == plan
    base = ["--seed_everything", "0", "--model.adapter", "runs/tiny/adapter.safetensors"]
    assert main(["test", "--config", str(config), *base, "--trainer.default_root_dir", "runs/other"]) == 0
    assert 0 <= json.loads(Path("runs/other/metrics.json").read_text())["macro_f1"] <= 1


def test_a_config_that_names_a_plan_already_makes_its_plan(config):
    own = ["--model.adapter", "SPT", "--model.adapter.plan", "plan.json"]
    words = ["--structure", "adapter", "--structured-only", "--reduction", "sample", "--samples", "1"]
    assert sensitivity(config, *own, *words, "--budget", "800") == 0
    plan = Plan.of("plan.json")
    assert {choice.trains for choice in plan.choices} <= {"nothing", "all", "adapter"}
    assert (plan.rule.structure, plan.reduction, plan.samples) == ("adapter", "sample", 1)
    assert Path("plan.png").is_file()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "the following arguments are required: --budget"),
        (["--budget", "many"], "argument --budget: invalid number value: 'many'"),
        (["--budget", "inf"], "argument --budget: invalid number value"),
        (["--budget", "0"], "--budget and --samples must be at least 1, not 0 and 4"),
        (["--budget", "1e3", "--out", "plan.png"], "--out must end in .json, not plan.png"),
        (["--budget", "1e3", "--rank", "40"], "rank must not exceed the width of the matrix, 40 > 16"),
        (["--budget", "1e3", "--alpha", "0"], "rank, alpha and beta must be at least 1"),
        (["--budget", "1", "--structured-only"], "the budget must hold the smallest allocation, 1 is below its"),
        (["--budget", "1e3", "--nope", "1"], "nope"),
        (["--budget", "1e3", "--ckpt_path", "last"], "not at a ckpt_path; name them as model.weights"),
        (["--budget", "1e3", "--model.backbone.num_classes", "3"], "the source has 8 classes"),
        (["--budget", "1e3", "--structure", "bits"], "invalid choice: 'bits'"),
    ],
)
def test_bad_calls_are_told_in_one_line(config, options, told, capsys):
    assert sensitivity(config, *options) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("geomed: error: ")]
    assert len(lines) == 1
    assert told in lines[0]
    assert not list(Path().rglob("plan*"))


def test_its_options_are_told(capsys):
    with pytest.raises(SystemExit) as end:
        main(["sensitivity", "--help"])
    assert end.value.code == 0
    assert "--budget" in capsys.readouterr().out
