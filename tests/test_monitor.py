"""What the monitor of a pre-training keeps of labelled images, and which of them belong together."""

from __future__ import annotations

import pytest
import torch

from geomed.backbones.inputs import Inputs
from geomed.backbones.vit import ViT, ViTSize
from geomed.evaluation.labelled_cases import LabelledCases
from geomed.pixels import IGNORE, Pixels
from geomed.tasks.monitor import Monitor, patch_labels


def vit(name: str = "vit_tiny_patch16_224") -> ViT:
    torch.manual_seed(0)
    size = ViTSize(dim=8, depth=1, heads=2, patch=4)
    return ViT(name, inputs=Inputs(["B04", "B03", "B02"]), image_size=16, size=size).eval()


class People(LabelledCases):
    """Six cases of three patients, of whom one is not known."""

    classes, ordered, division, summary = ("a", "b"), False, None, ""

    def __init__(self, *, several: bool = False) -> None:
        self._several = several

    @property
    def several(self) -> bool:
        return self._several

    def truth(self, part):
        return None

    def case_id(self, case):
        return f"case {case}"

    def patient_id(self, case):
        return None if case >= 4 else f"patient {case // 2}"


def test_a_patch_shows_what_half_of_it_shows():
    labels = torch.full((1, 6, 8), IGNORE)
    labels[0, :4, :4] = 2
    labels[0, :4, 4:6], labels[0, :4, 6:] = 1, 0  # half and half: the first of both
    labels[0, 4:, :4] = 3  # half of a patch that reaches over the edge
    labels[0, 4:, 4:7] = 3  # three eighths
    assert patch_labels(labels, 4).tolist() == [[2, 0, 3, IGNORE]]
    assert patch_labels(torch.full((2, 4, 4), IGNORE), 4).tolist() == [[IGNORE], [IGNORE]]


def test_windows_of_one_place_belong_together_whatever_their_date():
    backbone = vit()
    monitor = Monitor(backbone)
    tokens = backbone(Pixels(values=torch.rand(4, 3, 16, 16)))[0]
    read = torch.tensor([[0, 0, 16, 16], [0, 0, 16, 16], [48, 48, 16, 16], [64, 0, 16, 16]])
    labels = torch.randint(3, (4, 16, 16))
    monitor.add(tokens, {"labels": labels, "read": read, "scene": torch.tensor([0, 1, 0, 0])})
    features, found, groups = monitor.gathered(torch.device("cpu"))
    assert features.shape == (4 * 16, 8)
    torch.testing.assert_close(features, tokens.patches().flatten(0, 1).detach())
    assert torch.equal(found, patch_labels(labels, 4).flatten())
    one, other, near, far = groups.view(4, 16).unbind()
    assert len(one.unique()) == 1
    assert torch.equal(one, other)
    assert torch.equal(one, near)
    assert not torch.equal(one, far)
    assert monitor.gathered(torch.device("cpu")) == []


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_gap_224"])
def test_cases_go_by_patient_and_image_vector(name):
    backbone = vit(name)
    monitor = Monitor(backbone)
    monitor.of(People())
    tokens = backbone(Pixels(values=torch.rand(6, 3, 16, 16)))[0]
    monitor.add(tokens, {"label": torch.tensor([0, 1, 0, 1, 0, 1]), "case": torch.arange(6)})
    features, labels, groups = monitor.gathered(torch.device("cpu"))
    expected = tokens.data[:, 0] if backbone.spec.class_token else tokens.patches().mean(1)
    torch.testing.assert_close(features, expected.detach())
    assert labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert groups[0] == groups[1]
    assert groups[2] == groups[3]
    assert len(groups.unique()) == 4  # cases of nobody known stand alone


def test_it_scores_between_0_and_1_and_nothing_gives_nothing():
    monitor = Monitor(vit())
    assert monitor.judged([]) == {}
    labels = torch.arange(200) % 2
    features = torch.randn(200, 4) + 3 * labels[:, None]
    found = monitor.judged([features, labels, torch.arange(200) // 4])
    assert set(found) == {"knn", "linear"}
    assert all(0.9 < value <= 1 for value in found.values())


def test_what_it_cannot_judge_is_refused():
    backbone = vit()
    with pytest.raises(ValueError, match="one class each"):
        Monitor(backbone).of(People(several=True))
    with pytest.raises(ValueError, match="needs labels"):
        Monitor(backbone).add(backbone(Pixels(values=torch.rand(1, 3, 16, 16)))[0], {"read": torch.zeros(1, 4)})
