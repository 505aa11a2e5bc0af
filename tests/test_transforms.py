from __future__ import annotations

import pytest
import torch

from geomed.data.transforms import Augment, Change, apply


def sample() -> dict[str, torch.Tensor]:
    return {
        "values": torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4),
        "days": torch.tensor([100, 200]),
        "valid": torch.arange(2 * 4 * 4).reshape(2, 4, 4) % 3 > 0,
        "labels": torch.arange(16).reshape(4, 4),
    }


def test_a_shift_moves_all_dates_alike_and_nothing_else():
    before = sample()
    after = apply(before, Change(days=-7))
    assert after["days"].tolist() == [93, 193]
    for name in ("values", "valid", "labels"):
        assert torch.equal(after[name], before[name])
    assert before["days"].tolist() == [100, 200]


def test_shifts_are_drawn_within_their_bounds_and_both_ways():
    generator = torch.Generator().manual_seed(0)
    days = {Augment(shift_days=3).draw(sample(), generator).days for _ in range(200)}
    assert days == set(range(-3, 4))
    assert Augment().draw(sample(), generator).days == 0


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flip", [False, True])
def test_space_moves_together(flip, turns):
    after = apply(sample(), Change(flip=flip, turns=turns))
    for row in range(4):
        for column in range(4):
            old_row, old_column = divmod(int(after["labels"][row, column]), 4)
            assert torch.equal(after["values"][:, :, row, column], sample()["values"][:, :, old_row, old_column])
            assert torch.equal(after["valid"][:, row, column], sample()["valid"][:, old_row, old_column])


@pytest.mark.parametrize("wrong", [{"shift_days": -1}, {"shift_days": 200}, {"drop_dates": 1.0}])
def test_bad_settings_are_told(wrong):
    with pytest.raises(ValueError, match="correct it"):
        Augment(**wrong)
