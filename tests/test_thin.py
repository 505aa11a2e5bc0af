from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from geomed.adapters.thin import narrowed, widened


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (2, 0, 5)])
@pytest.mark.parametrize("biased", [False, True])
def test_values_and_gradients_are_those_of_linears(shape, biased):
    torch.manual_seed(0)
    x, y, down, up = drawn(*shape), drawn(*shape[:-1], 7), drawn(2, 5), drawn(7, 2)
    bias = drawn(2) if biased else None
    every = [x, y, down, up, *([bias] if biased else [])]
    ours = widened(y, narrowed(x, down, bias), up)
    plain = y + F.linear(F.linear(x, down, bias), up)
    torch.testing.assert_close(ours, plain)
    weights = torch.randn_like(plain)
    found = torch.autograd.grad((ours * weights).sum(), every)
    expected = torch.autograd.grad((plain * weights).sum(), every)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_channels_lie_apart_on_a_cpu_and_tokens_in_what_goes_back():
    x, down = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 5)
    narrow = narrowed(x, down)
    assert narrow.stride() == (1, 6)
    narrow.square().sum().backward()
    assert x.grad.is_contiguous()


def test_only_what_is_read_is_kept():
    x, y = drawn(2, 3, 5), drawn(2, 3, 7)
    down, up = drawn(2, 5), drawn(7, 2)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        widened(y, narrowed(x, down), up)
    wide = {each.untyped_storage().data_ptr() for each in kept if each.numel() > 2 * 7}
    assert wide == {x.untyped_storage().data_ptr()}
