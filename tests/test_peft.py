from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import pickle
import re
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from test_adapters import disturb, features, pixels, plain_vit, rgb, tsvit
from torch import Tensor, nn

from geomed.adapters import (
    Adapter,
    AdaptFormer,
    LoRA,
    Peft,
    adapted_modules,
    adapter_state,
    attach,
    base_state,
    detach,
    merge,
)
from geomed.adapters.counts import trainable
from geomed.adapters.files import load_adapter, save_adapter
from geomed.adapters.peft_methods import METHODS
from geomed.backbones.vit import ViT, ViTSize

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed: geomed[peft]"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),  # torch's own, of the sparse tensors in SHIRA
]

SETTINGS: dict[str, tuple[str, dict[str, object]]] = {
    "lora": ("LORA", {"r": 2}),
    "dora": ("LORA", {"r": 2, "use_dora": True, "init_lora_weights": "gaussian"}),
    "rslora": ("LORA", {"r": 2, "use_rslora": True}),
    "pissa": ("LORA", {"r": 2, "init_lora_weights": "pissa"}),
    "pissa_niter": ("LORA", {"r": 2, "init_lora_weights": "pissa_niter_4"}),
    "olora": ("LORA", {"r": 2, "init_lora_weights": "olora"}),
    "orthogonal": ("LORA", {"r": 2, "init_lora_weights": "orthogonal"}),
    "mica": ("LORA", {"r": 2, "init_lora_weights": "mica"}),
    "loha": ("LOHA", {"r": 2}),
    "lokr": ("LOKR", {"r": 2, "decompose_both": True}),
    "oft": ("OFT", {"oft_block_size": 8}),
    "oft_exact": ("OFT", {"oft_block_size": 8, "use_cayley_neumann": False, "block_share": True}),
    "coft": ("OFT", {"oft_block_size": 8, "coft": True}),
    "ia3": ("IA3", {}),
    "vera": ("VERA", {"r": 4}),
    "fourierft": ("FOURIERFT", {"n_frequency": 20}),
    "hra": ("HRA", {"r": 2}),
    "miss": ("MISS", {"r": 2}),
    "miss_bat": ("MISS", {"r": 8, "init_weights": "bat"}),
    "miss_mini": ("MISS", {"r": 2, "mini_r": 2, "init_weights": "mini"}),
    "randlora": ("RANDLORA", {"r": 16, "randlora_alpha": 2}),
    "shira": ("SHIRA", {"r": 2}),
    "waveft": ("WAVEFT", {"n_frequency": 20}),
    "c3a": ("C3A", {"block_size": 32}),
    "c3a_zero": ("C3A", {"block_size": 32, "init_weights": True}),
    "delora": ("DELORA", {"r": 2}),
    "gralora": ("GRALORA", {"r": 4, "gralora_k": 2}),
    "hira": ("HIRA", {"r": 2}),
    "road": ("ROAD", {"group_size": 8}),
    "road_4": ("ROAD", {"group_size": 8, "variant": "road_4"}),
    "psoft": ("PSOFT", {"r": 4}),
    "peanut": ("PEANUT", {"r": 2, "depth": 1}),
    "glora": ("GLORA", {"r": 2}),
    "glora_vector": ("GLORA", {"config_A_B": "vector", "config_C": "vector", "config_D_E": "vector"}),
}
BROKEN_GRAPHS = {"LOHA", "LOKR", "SHIRA", "WAVEFT"}


def registers_vit() -> ViT:
    size = ViTSize(dim=64, depth=2, heads=2, patch=14)
    return ViT("vit_small_patch14_reg4_dinov2", inputs=rgb(), image_size=28, size=size)


@functools.cache
def built(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double().eval()


@pytest.fixture(params=[registers_vit, pytest.param(plain_vit, marks=pytest.mark.slow)])
def backbone(request: pytest.FixtureRequest) -> nn.Module:
    made = copy.deepcopy(built(request.param))
    made.blocks = made.blocks[: 2 if request.param is registers_vit else 1]
    return made


@pytest.fixture(params=sorted(SETTINGS))
def adapter(request: pytest.FixtureRequest) -> Adapter:
    method, options = SETTINGS[request.param]
    return Peft(method=method, options=options)


def test_every_method_is_tried():
    assert {method for method, _ in SETTINGS.values()} == set(METHODS)


def test_starts_as_it_says_trains_wholly_and_goes_again(backbone, adapter):
    given = pixels(backbone)
    before = features(backbone, given)
    weights = copy.deepcopy(backbone.state_dict())
    attach(backbone, adapter)
    assert torch.allclose(features(backbone, given), before, rtol=0, atol=1e-12) == adapter.identity
    disturb(backbone)
    found = []
    for backbone.checkpoint_blocks in (False, True):
        backbone.train().zero_grad()
        features(backbone, given).square().sum().backward()
        found.append({n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None})
    own = set(adapter_state(backbone))
    assert set(found[0]) == own & set(dict(backbone.named_parameters())) != set()
    for name, plain in found[0].items():
        torch.testing.assert_close(found[1][name], plain, rtol=1e-9, atol=1e-12)
    detach(backbone)
    after = backbone.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_merge_keeps_the_outputs_or_refuses(backbone, adapter):
    given = pixels(backbone)
    keys = list(backbone.state_dict())
    attach(backbone, adapter)
    disturb(backbone)
    before = features(backbone, given)
    if adapter.method == "C3A":
        with pytest.raises(ValueError, match="cannot be merged"):
            merge(backbone)
        torch.testing.assert_close(features(backbone, given), before, rtol=0, atol=0)
        return
    merge(backbone)
    assert list(backbone.state_dict()) == keys
    torch.testing.assert_close(features(backbone, given), before, rtol=0, atol=1e-10)


def test_files_copies_and_pickles_hold_it_all(backbone, adapter, tmp_path):
    fresh = copy.deepcopy(backbone)
    given = pixels(backbone)
    attach(backbone, adapter)
    twin = copy.deepcopy(backbone)
    disturb(twin)
    outputs = features(twin, given)
    assert not torch.equal(outputs, features(backbone, given))
    thawed = pickle.loads(pickle.dumps(twin))  # noqa: S301  (written one line above)
    torch.testing.assert_close(features(thawed, given), outputs, rtol=0, atol=0)
    size = save_adapter(tmp_path / "a.safetensors", twin, [adapter])
    told = sum(value.nbytes for value in adapter_state(twin).values())
    assert told < size < told + 20_000
    assert told < 0.5 * sum(value.nbytes for value in base_state(twin).values())
    torch.manual_seed(99)
    file = load_adapter(tmp_path / "a.safetensors", fresh)
    assert file.adapters == (adapter,)
    torch.testing.assert_close(features(fresh, given), outputs, rtol=0, atol=0)


def test_stacks_below_ours_and_runs_in_bfloat16(backbone, adapter):
    given = pixels(backbone)
    attach(backbone, adapter)
    disturb(backbone)
    before = features(backbone, given)
    count = trainable(backbone)
    plain = base_state(backbone)
    attach(backbone, LoRA(rank=2, targets=("qkv", "fc1")))
    attach(backbone, AdaptFormer(bottleneck=3))
    assert trainable(backbone) > count
    torch.testing.assert_close(features(backbone, given), before, rtol=0, atol=1e-12)
    assert list(base_state(backbone)) == list(plain)
    backbone.float().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = features(backbone, pixels(backbone, torch.float32)).float().square().mean()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters() if p.requires_grad)


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.filterwarnings("ignore:Dynamo")  # it says what it does with peft's code
def test_compiles_as_one_graph_where_it_is_said_to(adapter):
    torch.manual_seed(0)
    backbone = registers_vit().double().eval()
    attach(backbone, adapter)
    disturb(backbone)
    given = pixels(backbone)
    torch.compiler.reset()
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    if adapter.method in BROKEN_GRAPHS:
        with pytest.raises(torch._dynamo.exc.Unsupported):
            features(compiled, given)
        return
    torch.testing.assert_close(features(compiled, given), features(backbone, given), rtol=0, atol=1e-6)


# Trainable parameters on a ViT-B/16, as peft 0.21.2 counts them where it is put into the four Linears of every block of
# the whole timm model at once (vit_base_patch16_224, timm 1.0.31); IA3 in qkv and fc2, as its paper has it.
VIT_B = [
    ("LORA", {}, 1_179_648),
    ("LORA", {"use_dora": True}, 1_262_592),
    ("LOHA", {}, 2_359_296),
    ("LOKR", {}, 80_640),
    ("OFT", {}, 999_936),
    ("IA3", {}, 64_512),
    ("VERA", {}, 95_232),
    ("FOURIERFT", {}, 48_000),
    ("HRA", {}, 516_096),
    ("MISS", {"r": 8}, 663_552),
    ("RANDLORA", {}, 921_600),
    ("SHIRA", {"r": 8}, 1_179_648),
    ("WAVEFT", {}, 124_416),
    ("C3A", {"block_size": 64}, 1_327_104),
    ("DELORA", {}, 1_179_696),
    ("GRALORA", {"r": 8}, 1_179_648),
    ("HIRA", {"r": 8}, 1_179_648),
    ("ROAD", {}, 82_944),
    ("PEANUT", {"r": 8}, 1_327_104),
    ("GLORA", {}, 2_875_872),
]


@pytest.fixture(scope="module")
def block_of_vit_b() -> nn.Module:
    return ViT("vit_base_patch16_224", inputs=rgb(), size=ViTSize(dim=768, depth=1, heads=12, patch=16))


@pytest.mark.parametrize(("method", "options", "expected"), VIT_B)
def test_counts_equal_those_of_peft_in_the_whole_model(block_of_vit_b, method, options, expected):
    chosen = {"targets": ("qkv", "fc2")} if method == "IA3" else {}
    attach(block_of_vit_b, Peft(method=method, options=options, **chosen))
    count = trainable(block_of_vit_b)
    detach(block_of_vit_b)
    assert 12 * count == expected


def linear(method: str, options: dict[str, object], inside: int = 16, outside: int = 24) -> tuple[nn.Module, nn.Linear]:
    """A network of one adapted Linear, trained a little, and that Linear as it was."""
    torch.manual_seed(0)
    network = nn.ModuleDict({"fc1": nn.Linear(inside, outside)}).double()
    plain = copy.deepcopy(network["fc1"])
    attach(network, Peft(method=method, options=options, targets=("fc1",)))
    disturb(network)
    return network["fc1"], plain


def weight_now(adapted: nn.Module) -> Tensor:
    """The weight that a layer acts as."""
    given = torch.eye(adapted.base.in_features, dtype=torch.float64)
    return (adapted(given) - adapted(torch.zeros_like(given))).T


def test_updates_of_weights_are_the_published_ones():
    x = torch.randn(5, 16, dtype=torch.float64)
    lora, plain = linear("LORA", {"r": 4, "lora_alpha": 6, "use_rslora": True})
    down, up = (dict(lora.named_parameters())[f"layer.lora_{name}.default.weight"] for name in "AB")
    torch.testing.assert_close(weight_now(lora), plain.weight + 6 / 4**0.5 * up @ down)
    dora, plain = linear("LORA", {"r": 4, "lora_alpha": 4, "use_dora": True})
    down, up, length = (
        dict(dora.named_parameters())[f"layer.lora_{name}.default.weight"] for name in ("A", "B", "magnitude_vector")
    )
    moved = plain.weight + up @ down
    torch.testing.assert_close(weight_now(dora), length[:, None] * moved / moved.norm(dim=1, keepdim=True))
    hira, plain = linear("HIRA", {"r": 4})
    down, up = (dict(hira.named_parameters())[f"layer.hira_{name}.default"] for name in "AB")
    torch.testing.assert_close(weight_now(hira), plain.weight * (1 + up @ down))
    miss, plain = linear("MISS", {"r": 4})
    block = dict(miss.named_parameters())["layer.miss_block.default"]
    torch.testing.assert_close(miss(x), plain(x) + x.unflatten(1, (4, 4)).sum(1) @ block)
    ia3, plain = linear("IA3", {})
    torch.testing.assert_close(ia3(x), plain(x) * dict(ia3.named_parameters())["layer.ia3_l.default"].T)
    vera, plain = linear("VERA", {"r": 4})
    named = dict(vera.named_parameters()) | dict(vera.named_buffers())
    b, d = named["layer.vera_lambda_b.default"], named["layer.vera_lambda_d.default"]
    drawn = b[:, None] * named["layer.vera_B.default"] @ (d[:, None] * named["layer.vera_A.default"])
    torch.testing.assert_close(weight_now(vera), plain.weight + drawn)


@pytest.mark.parametrize(
    ("method", "options"), [("OFT", {"oft_block_size": 4, "use_cayley_neumann": False}), ("HRA", {"r": 4})]
)
def test_rotations_keep_the_angles_between_rows(method, options):
    rotated, plain = linear(method, options)
    weight = weight_now(rotated)
    assert not torch.allclose(weight, plain.weight)
    torch.testing.assert_close(weight @ weight.T, plain.weight @ plain.weight.T)


def test_pissa_starts_from_the_largest_directions_and_leaves_the_weight():
    torch.manual_seed(0)
    network = nn.ModuleDict({"fc1": nn.Linear(16, 24)})
    before = network["fc1"].weight.clone()
    attach(network, Peft(method="LORA", options={"r": 3, "init_lora_weights": "pissa"}, targets=("fc1",)))
    adapted = network["fc1"]
    u, s, v = torch.linalg.svd(before)
    torch.testing.assert_close(adapted.first_up @ adapted.first_down, u[:, :3] * s[:3] @ v[:3])
    assert torch.equal(adapted.base.weight, before)


def test_ia3_scales_fc2_at_its_input():
    torch.manual_seed(0)
    network = nn.ModuleDict({"fc1": nn.Linear(4, 8), "fc2": nn.Linear(8, 4)})
    attach(network, Peft(method="IA3"))
    assert {name: p.numel() for name, p in network.named_parameters() if p.requires_grad} == {
        "fc1.layer.ia3_l.default": 8,
        "fc2.layer.ia3_l.default": 8,
    }


def test_what_a_seed_draws_is_shared_and_never_saved():
    backbone = registers_vit()
    attach(backbone, Peft(method="VERA", options={"r": 4}))
    drawn = {id(values) for name, values in backbone.named_buffers(remove_duplicate=False) if "vera_" in name}
    assert len(drawn) == 2 * 4 - 3  # A of 64 and 256 inputs; B of 192, 64 and 256 outputs
    assert not any("vera_A" in name or "vera_B" in name for name in backbone.state_dict())


def test_places_without_a_seed_in_peft_have_one_here():
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        network = nn.ModuleDict({"fc1": nn.Linear(16, 24)})
        attach(network, Peft(method="SHIRA", options={"r": 1}))
        made.append(network["fc1"].layer.shira_indices["default"])
    assert torch.equal(*made)


@pytest.mark.parametrize("method", sorted(name for name, known in METHODS.items() if known.convolutions))
def test_convolutions_merge_too(method):
    torch.manual_seed(0)
    backbone = registers_vit().double().eval()
    given = pixels(backbone)
    before = features(backbone, given)
    attach(backbone, Peft(method=method, targets=("patch_embed.proj",)))
    torch.testing.assert_close(features(backbone, given), before, rtol=0, atol=1e-12)
    disturb(backbone)
    after = features(backbone, given)
    assert not torch.equal(after, before)
    merge(backbone)
    torch.testing.assert_close(features(backbone, given), after, rtol=0, atol=1e-10)


def test_series_are_adapted_too():
    torch.manual_seed(0)
    backbone = tsvit().double().eval()  # its qkv has no bias
    given = pixels(backbone)
    for method, options in (("MISS", {"r": 2}), ("GLORA", {"r": 2}), ("LORA", {"r": 2, "use_dora": True})):
        before = features(backbone, given)
        attach(backbone, Peft(method=method, options=options))
        torch.testing.assert_close(features(backbone, given), before, rtol=0, atol=1e-12)
        disturb(backbone)
        features(backbone, given).square().sum().backward()
        assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)
        after = features(backbone, given)
        merge(backbone)
        torch.testing.assert_close(features(backbone, given), after, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("method", "options", "told"),
    [
        ("miss", {}, "method must be one of LORA, .*, not 'miss'"),
        ("PREFIX_TUNING", {}, "method must not be PREFIX_TUNING: .* use VPT or Prompts"),
        ("LN_TUNING", {}, "use LayerNormTuning"),
        ("ADALORA", {}, "prunes ranks"),
        ("BOFT", {}, "use OFT"),
        ("LORA", {"target_modules": ["qkv"]}, r"options must not hold target_modules .*: targets name the modules"),
        ("LORA", {"layers_to_transform": [1]}, "targets name the modules"),
        ("LORA", {"modules_to_save": ["head"]}, "add a Tune"),
        ("LORA", {"bias": "all"}, "add a BitFit"),
        ("HRA", {"apply_GS": True}, "NaN"),
        ("HRA", {"r": 3}, "r must be even for HRA"),
        ("VERA", {"save_projection": True}, "never saved"),
        ("LOHA", {"module_dropout": 0.1}, "no gradient"),
        ("FOURIERFT", {"init_weights": False}, "random start"),
        ("LORA", {"init_lora_weights": "eva"}, "needs data or quantised weights"),
        ("LORA", {"init_lora_weights": "pissa", "use_dora": True}, "leave one out"),
        ("LORA", {"rank": 8}, "LORA has the options r, lora_alpha, .* not rank"),
        ("MISS", {"r": [8]}, "numbers, texts, true or false"),
        ("OFT", {"r": 4}, "peft refuses OFT"),
    ],
)
def test_what_is_wrong_in_peft_is_refused(method, options, told):
    with pytest.raises(ValueError, match=told):
        attach(registers_vit(), Peft(method=method, options=options))


@pytest.mark.parametrize(
    ("method", "options", "targets", "told"),
    [
        ("OFT", {}, ("fc1", "patch_embed.proj"), r"stem\.patch_embed\.proj: OFT is not right in peft on Conv2d"),
        ("MISS", {"r": 7, "init_weights": "bat"}, ("fc1",), r"blocks\.0\.mlp\.mlp\.fc1: peft refuses MISS"),
        ("OFT", {"oft_block_size": 7}, ("fc1",), "Adjusted"),
        ("LORA", {"r": "x"}, ("fc1",), "peft refuses LORA"),
        ("LORA", {"r": 0}, ("fc1",), "peft refuses LORA"),
    ],
)
def test_a_refusal_leaves_the_network_as_it_was(method, options, targets, told):
    backbone = registers_vit()
    before = copy.deepcopy(backbone.state_dict())
    with pytest.raises(ValueError, match=told):
        attach(backbone, Peft(method=method, options=options, targets=targets))
    after = backbone.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_it_goes_in_first():
    backbone = registers_vit()
    attach(backbone, LoRA(rank=2))
    with pytest.raises(ValueError, match=r"attn\.qkv: .*; put the Peft adapter first"):
        attach(backbone, Peft(method="MISS", options={"r": 2}))
    attach(backbone, Peft(method="MISS", options={"r": 2}, targets=("fc1",)))
    assert {type(module).__name__ for module in adapted_modules(backbone)} == {"LowRankSlices", "PeftLayer"}


def test_without_peft_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'geomed[peft]'")):
        Peft(method="MISS")


def test_a_line_of_yaml_makes_one():
    import jsonargparse

    import geomed.public  # noqa: F401  (so that the class is found by its short name)

    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--adapter", type=Adapter)
    line = "{class_path: Peft, init_args: {method: MISS, options: {r: 8, init_weights: bat, miss_dropout: 0.1}}}"
    made = parser.instantiate(parser.parse_args([f"--adapter={line}"])).adapter
    assert made == Peft(method="MISS", options={"r": 8, "init_weights": "bat", "miss_dropout": 0.1})
    assert type(made.options["r"]) is int
    assert made == Peft(**dataclasses.asdict(made))
