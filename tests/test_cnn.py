from __future__ import annotations

import pytest
import timm
import torch

from geomed.adapters import LoRA, attach
from geomed.backbones.cnn import Cnn
from geomed.backbones.inputs import Inputs
from geomed.heads.pooled import Pooled
from geomed.pixels import Pixels

NAME = "test_resnet"  # timm's own tiny network for tests


def small(bands=("grey",), **given) -> Cnn:
    inputs = Inputs(bands, mean=[0.5] * len(bands), std=[0.25] * len(bands))
    return Cnn(NAME, inputs=inputs, **given).eval()


def test_tokens_are_the_places_of_timms_last_map():
    model = small(("red", "green", "blue"))
    reference = timm.create_model(NAME, num_classes=0).eval()
    reference.load_state_dict(model.network.state_dict())
    values = torch.rand(2, 3, 64, 96)
    (tokens,) = model(Pixels(values=values))
    maps = reference.forward_features((values - 0.5) / 0.25)
    assert tokens.grid == tuple(maps.shape[-2:]) == (64 // model.spec.patch, 96 // model.spec.patch)
    assert tokens.prefix == 0
    assert tokens.data.shape[-1] == model.spec.dim
    torch.testing.assert_close(tokens.data, maps.flatten(2).transpose(1, 2))
    head = Pooled(model.spec, 3)
    torch.testing.assert_close(head.embed((tokens,)), reference((values - 0.5) / 0.25))  # timm pools the same way


def test_a_checkpoint_in_timms_layout_arrives_without_its_classifier(tmp_path):
    torch.manual_seed(1)
    whole = timm.create_model(NAME, num_classes=7, in_chans=1)
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    model = small(checkpoint=str(tmp_path / "w.pth"))
    state = whole.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.network.state_dict().items())
    torch.save(
        {"conv1.weight": state["stem.conv1.weight"] if "stem.conv1.weight" in state else torch.zeros(1)},
        tmp_path / "x.pth",
    )
    with pytest.raises(ValueError, match="weights of another model"):
        small(checkpoint=str(tmp_path / "x.pth"))


@pytest.mark.parametrize(
    ("name", "told"), [("no_such_net", "timm has no model"), ("vit_tiny_patch16_224", "take a convolutional network")]
)
def test_other_networks_are_refused(name, told):
    with pytest.raises(ValueError, match=told):
        Cnn(name, inputs=Inputs(["grey"], mean=[0.5], std=[0.5]))


def test_what_it_cannot_read_is_refused():
    model = small()
    with pytest.raises(ValueError, match="single images"):
        model(Pixels(values=torch.zeros(1, 2, 1, 64, 64), days=torch.zeros(1, 2, dtype=torch.long)))
    with pytest.raises(ValueError, match="depths"):
        model(Pixels(values=torch.zeros(1, 1, 64, 64)), depths=(3,))


def test_adapters_of_attention_find_no_place():
    with pytest.raises(ValueError, match="LoRA"):
        attach(small(), LoRA(rank=2))
