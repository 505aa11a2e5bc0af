from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from geomed.tasks.optimisation import Optimisation


def test_the_rate_rises_and_falls_step_by_step():
    course = Optimisation(lr=1.0, warmup=0.1, floor=0.01)
    rates = [course.factor(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates.index(max(rates)) == 10
    assert rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.01)
    assert all(a < b for a, b in pairwise(rates[:11]))
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert course.factor(1_000, 100) == pytest.approx(0.01)


def test_one_step_and_no_warmup_are_fine():
    assert Optimisation(warmup=0.0).factor(0, 1) == 1.0


def test_it_drives_adamw():
    made = Optimisation(lr=0.5, warmup=0.0).configure([torch.nn.Parameter(torch.zeros(1))], 10)
    assert made["optimizer"].param_groups[0]["lr"] == 0.5
    assert made["lr_scheduler"]["interval"] == "step"


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"warmup": 1.0}, {"floor": 2.0}])
def test_bad_settings_are_told(wrong):
    with pytest.raises(ValueError, match="lr must be positive"):
        Optimisation(**wrong)
