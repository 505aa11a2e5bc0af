from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from geomed.tasks.losses import IGNORE, CrossEntropy, Dice, Focal, Loss, Sum


def batch(share_unknown: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, 5, generator=made, requires_grad=True)
    labels = torch.randint(0, 4, (2, 6, 5), generator=made)
    labels[torch.rand(2, 6, 5, generator=made) < share_unknown] = IGNORE
    return logits, labels


LOSSES: dict[str, Loss] = {
    "cross_entropy": CrossEntropy(),
    "smoothed": CrossEntropy(smoothing=0.1),
    "weighted": CrossEntropy({"b": 3.0}),
    "focal": Focal(),
    "dice": Dice(),
    "sum": Sum([CrossEntropy(), Dice()], [1.0, 0.5]),
}


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_unknown_pixels_do_not_count(name):
    loss = LOSSES[name]
    loss.bind(("a", "b", "c", "d"))
    logits, labels = batch()
    before = loss(logits, labels)
    changed = torch.where((labels == IGNORE)[:, None], logits + 5 * torch.randn_like(logits), logits)
    torch.testing.assert_close(loss(changed, labels), before)
    before.backward()
    assert (logits.grad.abs().sum(1)[labels == IGNORE] == 0).all()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_nothing_labelled_is_zero(name):
    loss = LOSSES[name]
    loss.bind(("a", "b", "c", "d"))
    logits, labels = batch()
    value = loss(logits, torch.full_like(labels, IGNORE))
    value.backward()
    assert value.item() == 0
    assert torch.isfinite(logits.grad).all()


def test_cross_entropy_equals_torch():
    logits, labels = batch()
    torch.testing.assert_close(CrossEntropy()(logits, labels), F.cross_entropy(logits, labels, ignore_index=IGNORE))
    weighted = CrossEntropy({"b": 3.0, "d": 0.5})
    weighted.bind(("a", "b", "c", "d"))
    expected = F.cross_entropy(logits, labels, torch.tensor([1.0, 3.0, 1.0, 0.5]), ignore_index=IGNORE)
    torch.testing.assert_close(weighted(logits, labels), expected)


def test_bad_settings_are_told():
    with pytest.raises(ValueError, match="weights name wheat, the classes are a, b"):
        CrossEntropy({"wheat": 2.0}).bind(("a", "b"))
    with pytest.raises(ValueError, match="1 losses need as many weights, not 2"):
        Sum([Dice()], [1.0, 2.0])
