from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_tsvit import GOLDEN, dense, golden_pixels, released_names, run, small

from geomed.adapters import AdaptFormer, LoRA, attach
from geomed.adapters.files import save_adapter
from geomed.heads.class_tokens import ClassTokens
from geomed.tasks.segmentation import Segmentation
from geomed.tasks.task import BaseWeights, adapt, load_base


def released_file(folder: Path) -> str:
    """A file as the reference's trainer writes it, with the golden weights."""
    model = dense()
    own = model.state_dict()
    state = {f"module.{theirs}": own[ours].clone() for ours, theirs in released_names(model).items()}
    torch.save(state, folder / "best.pth")
    return str(folder / "best.pth")


def test_a_released_checkpoint_loads_whole_and_answers_as_the_reference(tmp_path):
    backbone = small()
    head = ClassTokens(backbone.spec, order="reference")
    model = torch.nn.ModuleDict({"backbone": backbone, "head": head}).double()
    load_base(backbone, head, BaseWeights(path=released_file(tmp_path)))
    np.testing.assert_allclose(run(model, golden_pixels()).detach().numpy(), GOLDEN["y"], rtol=0, atol=1e-10)


def test_a_head_for_other_classes_keeps_its_new_part(tmp_path):
    task = Segmentation(
        backbone=small(),
        head=lambda spec: ClassTokens(spec, 3),
        adapter=LoRA(rank=2),
        weights=BaseWeights(path=released_file(tmp_path)),
    )
    assert task.head.remap.weight.shape == (3, 5)
    assert torch.equal(task.head.norm.weight.double(), dense()["head"].norm.weight.float().double())
    assert {name.split(".")[0] for name, p in task.named_parameters() if p.requires_grad} == {"backbone", "head"}


def test_weights_of_another_size_are_refused(tmp_path):
    backbone = small(years=True)
    with pytest.raises(ValueError, match=r"best\.pth: these are weights of another model"):
        load_base(backbone, ClassTokens(backbone.spec), BaseWeights(path=released_file(tmp_path)))


def test_freezing_trains_the_head_alone():
    task = Segmentation(backbone=small(), head=ClassTokens, freeze=True)
    assert {name for name, p in task.named_parameters() if p.requires_grad} == {
        "head.norm.weight",
        "head.norm.bias",
        "head.linear.weight",
        "head.linear.bias",
    }


def test_an_adapter_file_goes_in_first(tmp_path):
    torch.manual_seed(0)
    backbone = small()
    head = ClassTokens(backbone.spec)
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    attach(backbone, LoRA(rank=2))
    save_adapter(tmp_path / "a.safetensors", backbone, [LoRA(rank=2)], head=head)
    again = small()
    again.load_state_dict(state)
    path = str(tmp_path / "a.safetensors")
    assert adapt(again, ClassTokens(again.spec), [path, AdaptFormer(bottleneck=2)]) == (
        LoRA(rank=2),
        AdaptFormer(bottleneck=2),
    )
    with pytest.raises(ValueError, match="put it first in the list"):
        adapt(small(), head, [LoRA(rank=2), path])


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "not a readable weights file"), (b"\x80\x04nonsense", "not a readable weights file")]
)
def test_broken_files_are_told(tmp_path, content, told):
    (tmp_path / "w.pth").write_bytes(content)
    backbone = small()
    with pytest.raises(ValueError, match=rf"w\.pth: {told}"):
        load_base(backbone, ClassTokens(backbone.spec), BaseWeights(path=str(tmp_path / "w.pth")))


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    torch.save({"state_dict": {"x": Path("somewhere")}}, tmp_path / "w.pth")
    backbone = small()
    with pytest.raises(ValueError, match="not a readable weights file"):
        load_base(backbone, ClassTokens(backbone.spec), BaseWeights(path=str(tmp_path / "w.pth")))
