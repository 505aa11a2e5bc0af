from __future__ import annotations

import csv
import inspect

import pytest
import torch

import geomed.public
from geomed import adapters_command
from geomed.adapters import Adapter, Columns, LoRA, SideNetwork, attach
from geomed.adapters.counts import trainable
from geomed.adapters.files import file_size, save_adapter
from geomed.backbones.inputs import Inputs
from geomed.backbones.vit import ViT
from geomed.cli import main


@pytest.fixture
def told(capsys, tmp_path):
    assert main(["adapters", "--backbone", "test_vit", "--csv", str(tmp_path / "adapters.csv")]) == 0
    with (tmp_path / "adapters.csv").open(newline="") as file:
        rows = {row["adapter"]: row for row in csv.DictReader(file)}
    return capsys.readouterr().out, rows


def test_every_public_adapter_is_listed_and_fits_the_terminal(told):
    text, rows = told
    public = (getattr(geomed.public, name) for name in geomed.public.__all__)
    kinds = {one for one in public if inspect.isclass(one) and issubclass(one, Adapter) and not inspect.isabstract(one)}
    assert set(rows) == {kind.__name__ for kind in kinds}
    lines = text.splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert [line.split()[0] for line in lines if line[:1].isalpha()][2:-1] == sorted(rows, key=str.lower)


def test_what_is_told_is_what_attaching_gives(told, tmp_path):
    _, rows = told
    for adapter in (LoRA(), Columns(), SideNetwork()):
        backbone = ViT("test_vit", inputs=Inputs(("red", "green", "blue"), [0.5] * 3, [0.5] * 3))
        base = sum(parameter.numel() for parameter in backbone.parameters())
        attach(backbone, adapter)
        size = save_adapter(tmp_path / "a.safetensors", backbone, [adapter])
        row = rows[type(adapter).__name__]
        assert int(row["parameters"]) == trainable(backbone)
        assert float(row["share"]) == trainable(backbone) / base
        assert int(row["file_bytes"]) == size == file_size(backbone, [adapter])
        assert row["paper"] == adapter.paper


def test_the_table_says_where_and_whether_it_merges(told):
    text, rows = told
    assert rows["LoRA"]["where"] == "blocks.*.attention.attn.qkv"
    assert (rows["LoRA"]["mergeable"], rows["LoRA"]["starts_as_base"]) == ("true", "true")
    assert (rows["VPT"]["mergeable"], rows["VPT"]["starts_as_base"]) == ("false", "false")
    assert "    W + (alpha / rank) B A, with A drawn and B zero [Hu et al., ICLR 2022]\n" in text
    assert rows["SPT"]["parameters"] == ""
    assert "not attached: its plan is made by geomed sensitivity" in text


def test_stages_are_told_together(capsys):
    assert main(["adapters", "--backbone", "tsvit"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("tsvit: 1,656,704 parameters\n")
    assert "    in {temporal,spatial}.blocks.*.attention.attn.qkv\n" in text
    assert "    in spatial.blocks.*\n" in text


def test_a_refusal_is_told_in_its_place(capsys, monkeypatch):
    monkeypatch.setattr(adapters_command, "EXAMPLES", {"Tune": {"targets": ("nowhere",)}})
    monkeypatch.setattr(adapters_command.geomed.adapters, "__all__", ["LoRA", "Peft", "Tune"])
    assert main(["adapters", "--backbone", "test_vit"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "not attached: method must be given" in text
    assert "not attached: Tune(targets=('nowhere',)) matches no module of ViT" in text
    assert "294,912" not in text


@pytest.mark.parametrize("name", ["vit_of_nobody", "resnet18"])
def test_another_backbone_is_told_in_one_line(name, capsys):
    assert main(["adapters", "--backbone", name]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("geomed: error: ")
    assert name in error


def test_a_folder_that_is_not_there_is_told(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(adapters_command.geomed.adapters, "__all__", ["LoRA"])
    assert main(["adapters", "--backbone", "test_vit", "--csv", str(tmp_path / "none" / "a.csv")]) == 2
    assert "No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("numbers", "short"), [([3], "3"), ([0, 1, 2], "0-2"), ([5, 0, 1, 3], "0-1,3,5"), ([10, 11], "10-11")]
)
def test_block_numbers_are_told_as_ranges(numbers, short):
    assert adapters_command._ranges(numbers) == short


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("W + B A (Hu et al., ICLR 2022, section 4.1).\n\nMore.", "W + B A"),
        ("As by Hu et al. in `this` form. And that.", "As by Hu et al. in this form"),
        ("One (of two), e.g. a: 0.5 of it.", "One (of two), e.g. a: 0.5 of it"),
        ("", ""),
    ],
)
def test_the_first_sentence_stands_for_the_rest(text, first):
    assert adapters_command._first_sentence(text) == first


def test_no_network_holds_numbers():
    assert {parameter.device for parameter in adapters_command._backbone("test_vit").parameters()} == {
        torch.device("meta")
    }


def test_its_options_are_told(capsys):
    with pytest.raises(SystemExit):
        main(["adapters", "--help"])
    text = capsys.readouterr().out
    assert "--backbone NAME" in text
    assert "--csv FILE" in text
