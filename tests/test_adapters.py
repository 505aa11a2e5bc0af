from __future__ import annotations

import copy
import importlib.util
import pickle
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from geomed.adapters import (
    DVPT,
    SNELL,
    SNELLA,
    SPT,
    SSF,
    VPT,
    Adapter,
    AdaptFormer,
    AllocationRule,
    BitFit,
    Columns,
    Convpass,
    EarthAdapter,
    ExPLoRA,
    FacT,
    LayerNormTuning,
    LoRA,
    Peft,
    Prompts,
    Rein,
    RepAdapter,
    Sensitivity,
    SideNetwork,
    Tune,
    adapted_modules,
    adapter_state,
    attach,
    base_state,
    detach,
    make_plan,
    merge,
)
from geomed.adapters.candidate import candidates
from geomed.adapters.counts import trainable, trainable_table
from geomed.adapters.files import load_adapter, read_adapter, save_adapter
from geomed.backbones.inputs import Inputs
from geomed.backbones.tsvit import TSViT, TSViTSize
from geomed.backbones.vit import ViT
from geomed.bands import PASTIS_BANDS
from geomed.heads.class_tokens import ClassTokens
from geomed.pixels import Pixels

if TYPE_CHECKING:
    from collections.abc import Callable


def spt(init: str = "zero", **settings: object) -> Callable[[nn.Module], Adapter]:
    """SPT by a plan for the backbone that it goes into, of sensitivities that are drawn."""

    def make(backbone: nn.Module) -> Adapter:
        drawn = torch.Generator().manual_seed(3)
        rule = AllocationRule(rank=2, **settings)
        every = candidates(backbone)
        scores = {}
        for name in dict.fromkeys(one.tensor for one in every):
            height, *width = backbone.get_parameter(name).shape
            lines = torch.rand(height, *[1 for _ in width], generator=drawn) ** 4
            scores[name] = (
                lines * torch.rand(height, *width, generator=drawn) ** 8 * 10 ** torch.randn(1, generator=drawn)
            )
        sensitivity = Sensitivity(scores=scores, samples=1, reduction="batch")
        budget = sum(rule.cost(one) for one in every) // 3
        return SPT(plan=make_plan(backbone, sensitivity, budget=budget, rule=rule), init=init)

    return make


ADAPTERS: dict[str, Adapter | Callable[[nn.Module], Adapter]] = {
    "lora": LoRA(rank=2),
    "lora_fused": LoRA(rank=2, parts=(), targets=("qkv", "attn.proj", "fc1", "fc2")),
    "lora_stem": LoRA(rank=2, targets=("patch", "dates.day", "patch_embed.proj")),
    "bitfit": BitFit(),
    "adaptformer": AdaptFormer(bottleneck=4),
    "adaptformer_norm": AdaptFormer(bottleneck=4, norm=True),
    "prefix": Prompts(count=3),
    "tokens": Prompts(count=3, kind="tokens"),
    "shallow": Prompts(count=3, deep=False),
    "tune": Tune(targets=("blocks.1", "norm")),
    "earth": EarthAdapter(bottleneck=3, mask="symmetric"),
    "earth_reference": EarthAdapter(bottleneck=3, cutoff=1.0, init="reference", frequency_blocks=(-1,)),
    "earth_plain": EarthAdapter(bottleneck=3, blocks=(-1,), frequency_blocks=()),
    "rein": Rein(tokens=4, rank=2),
    "rein_reference": Rein(tokens=4, rank=2, init="reference", scale=0.5, blocks=(-1,)),
    "vpt": VPT(count=3),
    "vpt_shallow": VPT(count=3, deep=False),
    "dvpt": DVPT(count=3, bottleneck=4),
    "dvpt_mean": DVPT(count=3, bottleneck=3, every=1, aggregate="mean"),
    "dvpt_released": DVPT(mode="released", count=3, bottleneck=4),
    "explora": ExPLoRA(rank=2),
    "explora_sparing": ExPLoRA(rank=2, blocks=(), parts=("k",), norms=False),
    "explora_whole": ExPLoRA(rank=0, blocks=(0,), class_token=False),
    "columns": Columns(count=2),
    "columns_norm": Columns(count=3, choose="norm", targets=("qkv", "fc2")),
    "columns_s2ft": Columns(count=3, heads=1, coupled=True, targets=("attn.proj", "fc2")),
    "spt": spt(),
    "spt_adapter": spt(structure="adapter"),
    "spt_reference": spt("reference"),
    "spt_structured": spt("reference", structure="adapter", structured_only=True),
    "side": SideNetwork(),
    "side_first": SideNetwork(rank=3, late=(0,), beta=2.0),
    "side_plus": SideNetwork(rank=1, late=(0, -1), beta=5.0, kernel=3),
    "fact_tt": FacT(rank=2, scale=2.0),
    "fact_tk": FacT(rank=3, form="tk", targets=("fc1", "fc2", "proj")),
    "snell": SNELL(rank=4, sparsity=0.5),
    "snell_paper": SNELL(rank=2, sparsity=0.9, sparsifier="paper", targets=("qkv", "fc2")),
    "snell_dense": SNELL(rank=4, sparsity=0, targets=("proj", "fc1")),
    "snella": SNELLA(rank=4),
    "ssf": SSF(),
    "ssf_norms": SSF(targets=("norm",)),
    "norms": LayerNormTuning(),
    "convpass": Convpass(bottleneck=3),
    "convpass_mlp": Convpass(bottleneck=1, scale=0.1, targets=("mlp",)),
    "repadapter": RepAdapter(bottleneck=4),
    "repadapter_whole": RepAdapter(bottleneck=3, groups=1, scale=2.0, targets=("attn.proj", "fc2", "qkv")),
}
if importlib.util.find_spec("peft"):  # and all its methods in tests/test_peft.py
    ADAPTERS["peft"] = Peft(method="MISS", options={"r": 2})
MERGEABLE = {
    "peft",
    "lora",
    "lora_fused",
    "lora_stem",
    "bitfit",
    "tune",
    "explora",
    "explora_sparing",
    "explora_whole",
    "fact_tt",
    "fact_tk",
    "snell",
    "snell_paper",
    "snell_dense",
    "snella",
    "columns",
    "columns_norm",
    "columns_s2ft",
    "spt",
    "spt_reference",
    "ssf",
    "ssf_norms",
    "norms",
    "repadapter",
    "repadapter_whole",
}


def rgb() -> Inputs:
    return Inputs(("red", "green", "blue"), [0.5] * 3, [0.2] * 3)


def tsvit() -> TSViT:
    size = TSViTSize(dim=16, heads=2, head_dim=8, temporal_depth=2, spatial_depth=2)
    return TSViT(inputs=rgb(), num_classes=3, size=size, image_size=8)


def plain_vit() -> ViT:
    return ViT("test_vit", inputs=rgb())


def registers_vit() -> ViT:
    backbone = ViT("vit_small_patch14_reg4_dinov2", inputs=rgb(), image_size=28)
    backbone.blocks = backbone.blocks[:2]
    return backbone


BACKBONES = {"tsvit": tsvit, "vit": plain_vit, "dinov2": registers_vit}


def pixels(backbone: nn.Module, dtype: torch.dtype = torch.float64) -> Pixels:
    made = torch.Generator().manual_seed(1)
    if isinstance(backbone, TSViT):
        values = torch.rand(2, 5, 3, 8, 6, generator=made, dtype=dtype)
        valid = torch.rand(2, 5, 8, 6, generator=made) > 0.2
        return Pixels(values=values, days=torch.arange(5).repeat(2, 1) * 30 + 18_000, valid=valid)
    patch = backbone.spec.patch
    return Pixels(values=torch.rand(2, 3, 2 * patch, 3 * patch, generator=made, dtype=dtype))


def disturb(module: nn.Module) -> None:
    """Move every trained parameter off its start."""
    made = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                change = torch.randn(parameter.shape, generator=made, dtype=torch.float64)
                parameter.add_(0.1 * change.to(parameter.dtype))


def features(backbone: nn.Module, given: Pixels) -> Tensor:
    return torch.cat([tokens.data for tokens in backbone(given, depths=(0, -1))], -1)


@pytest.fixture(params=sorted(BACKBONES))
def backbone(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return BACKBONES[request.param]().double().eval()


@pytest.fixture(params=sorted(ADAPTERS))
def named(request: pytest.FixtureRequest) -> str:
    return request.param


def adapter_for(backbone: nn.Module, name: str) -> Adapter:
    """An adapter of the list; some are made for the backbone that they go into."""
    entry = ADAPTERS[name]
    return entry if isinstance(entry, Adapter) else entry(backbone)


@pytest.fixture
def adapter(backbone: nn.Module, named: str) -> Adapter:
    return adapter_for(backbone, named)


def test_starts_as_the_identity_or_says_that_it_does_not(backbone, adapter):
    given = pixels(backbone)
    before = features(backbone, given)
    attach(backbone, adapter)
    after = features(backbone, given)
    assert torch.allclose(after, before, rtol=0, atol=1e-12) == adapter.identity


def test_the_layout_of_tokens_survives(backbone, adapter):
    given = pixels(backbone)
    before = backbone(given, depths=(0, -1))
    attach(backbone, adapter)
    disturb(backbone)
    for ours, plain in zip(backbone(given, depths=(0, -1)), before, strict=True):
        assert (ours.grid, ours.prefix, ours.data.shape) == (plain.grid, plain.prefix, plain.data.shape)


def test_checkpointed_blocks_give_the_same_gradients(named):
    torch.manual_seed(0)
    backbone = registers_vit().double().train()
    attach(backbone, adapter_for(backbone, named))
    disturb(backbone)
    found = []
    for backbone.checkpoint_blocks in (False, True):
        backbone.zero_grad()
        features(backbone, pixels(backbone)).square().sum().backward()
        found.append({n: p.grad.clone() for n, p in backbone.named_parameters() if p.requires_grad})
    for name, plain in found[0].items():
        torch.testing.assert_close(found[1][name], plain, rtol=1e-9, atol=1e-12)


def test_exactly_the_adapter_trains_and_all_of_it_learns(backbone, adapter):
    attach(backbone, adapter)
    disturb(backbone)
    features(backbone, pixels(backbone)).square().sum().backward()
    own = set(adapter_state(backbone))
    named = dict(backbone.named_parameters())
    assert {name for name, parameter in named.items() if parameter.requires_grad} == own & set(named)
    for name, parameter in named.items():
        assert (parameter.grad is not None) == (name in own), name
    assert any(parameter.grad.abs().sum() > 0 for parameter in named.values() if parameter.grad is not None)


def test_detach_gives_back_the_very_same_weights(backbone, adapter):
    before = copy.deepcopy(backbone.state_dict())
    attach(backbone, adapter)
    disturb(backbone)
    detach(backbone)
    after = backbone.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert not adapted_modules(backbone)


def test_merge_keeps_the_outputs_or_refuses(backbone, adapter):
    given = pixels(backbone)
    keys = set(backbone.state_dict())
    attach(backbone, adapter)
    disturb(backbone)
    before = features(backbone, given)
    if not all(module.mergeable for module in adapted_modules(backbone)):
        with pytest.raises(ValueError, match="cannot be merged"):
            merge(backbone)
        torch.testing.assert_close(features(backbone, given), before, rtol=0, atol=0)
        return
    merge(backbone)
    assert not adapted_modules(backbone)
    assert set(backbone.state_dict()) - keys <= {name for name in backbone.state_dict() if name.endswith("qkv.bias")}
    torch.testing.assert_close(features(backbone, given), before, rtol=0, atol=1e-10)


def test_what_can_merge_is_what_is_said_to():
    torch.manual_seed(0)
    for name in ADAPTERS:
        backbone = tsvit()
        attach(backbone, adapter_for(backbone, name))
        assert all(module.mergeable for module in adapted_modules(backbone)) == (name in MERGEABLE), name


def test_files_round_trip(backbone, adapter, tmp_path):
    fresh = copy.deepcopy(backbone)
    given = pixels(backbone)
    attach(backbone, adapter)
    disturb(backbone)
    size = save_adapter(tmp_path / "a.safetensors", backbone, [adapter], facts={"classes": ["a", "b"]})
    assert size == (tmp_path / "a.safetensors").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    file = load_adapter(tmp_path / "a.safetensors", fresh)
    assert file.adapters == (adapter,)
    assert file.facts == {"classes": ["a", "b"]}
    torch.testing.assert_close(features(fresh, given), features(backbone, given), rtol=0, atol=0)


def test_an_adapter_of_another_base_is_refused(named, tmp_path):
    torch.manual_seed(0)
    first, second = tsvit(), tsvit()
    adapter = adapter_for(first, named)
    attach(first, adapter)
    save_adapter(tmp_path / "a.safetensors", first, [adapter])
    with pytest.raises(ValueError, match=r"a\.safetensors: this adapter was made on a backbone with weights"):
        load_adapter(tmp_path / "a.safetensors", second)
    assert not adapted_modules(second)


def test_copies_are_independent_and_pickle(backbone, adapter):
    given = pixels(backbone)
    attach(backbone, adapter)
    twin = copy.deepcopy(backbone)
    disturb(twin)
    thawed = pickle.loads(pickle.dumps(twin))  # noqa: S301  (written one line above)
    torch.testing.assert_close(features(thawed, given), features(twin, given), rtol=0, atol=0)
    assert not torch.equal(features(twin, given), features(backbone, given))


@pytest.mark.parametrize("second", ["lora_fused", "bitfit", "adaptformer"])
def test_stacking_keeps_the_first_training(backbone, adapter, second):
    before = base_state(backbone)
    attach(backbone, adapter)
    first = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    count = trainable(backbone)
    given = pixels(backbone)
    disturb(backbone)
    outputs = features(backbone, given)
    attach(backbone, ADAPTERS[second])
    assert trainable(backbone) > count
    assert len({n for n, p in backbone.named_parameters() if p.requires_grad}) > len(first)
    torch.testing.assert_close(features(backbone, given), outputs, rtol=0, atol=1e-12)
    after = base_state(backbone)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    detach(backbone)
    assert set(backbone.state_dict()) == set(before)


def test_runs_in_bfloat16_autocast(backbone, adapter):
    backbone = backbone.float().train()
    attach(backbone, adapter)
    with torch.autocast("cpu", torch.bfloat16):
        loss = features(backbone, pixels(backbone, torch.float32)).float().square().mean()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters() if p.grad is not None)


@pytest.mark.slow
@pytest.mark.compiles
def test_compiles_without_a_graph_break(backbone, adapter):
    given = pixels(backbone)
    attach(backbone, adapter)
    disturb(backbone)
    torch.compiler.reset()
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(features(compiled, given), features(backbone, given), rtol=0, atol=1e-9)


def test_no_match_is_an_error_and_changes_nothing():
    backbone = tsvit()
    with pytest.raises(ValueError, match=r"matches no module of TSViT; its modules end in .*qkv"):
        attach(backbone, LoRA(targets=("nowhere",)))
    assert all(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: LoRA(rank=0), "rank must be positive"),
        (lambda: LoRA(parts=("q", "x")), "parts must be of q, k, v"),
        (lambda: AdaptFormer(bottleneck=0), "bottleneck must be positive"),
        (lambda: Prompts(count=0), "count must be positive"),
        (lambda: attach(tsvit(), LoRA(rank=400)), "rank must not exceed the width"),
    ],
)
def test_bad_settings_are_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_prompts_do_not_stack_on_prompts():
    backbone = tsvit()
    attach(backbone, Prompts(count=2))
    with pytest.raises(ValueError, match="give all prompts in one Prompts"):
        attach(backbone, Prompts(count=2))


def test_broken_and_foreign_files_are_told(tmp_path):
    with pytest.raises(ValueError, match="no such adapter file"):
        read_adapter(tmp_path / "none.safetensors")
    (tmp_path / "short.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        read_adapter(tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match="nothing is attached"):
        save_adapter(tmp_path / "a.safetensors", tsvit(), [])


# Trainable parameters on the PASTIS TSViT as the winter-wheat study's code counts them (arXiv 2310.01825; counted by
# running github.com/geoaigroup/GEOAI-ECRS2023, commit 82a6f05): 19 class tokens, a Linear from 19 logits to one.
ALL_LINEAR = ("qkv", "proj", "fc1", "fc2", "patch", "dates.day", "linear")
WHEAT = {
    "head": ([], ("head",), 792),
    "bitfit": ([BitFit(targets=(*BitFit().targets, "head.linear"))], ("remap",), 11_544),
    "bitfit_partial": ([BitFit(targets=("proj", "fc1", "attention.norm", "mlp.norm", "patch"))], ("remap",), 7_316),
    "lora_1": ([LoRA(rank=1, parts=(), targets=ALL_LINEAR)], ("remap",), 17_198),
    "lora_4": ([LoRA(rank=4, parts=(), targets=ALL_LINEAR)], ("remap",), 68_732),
    "adaptformer_8": ([AdaptFormer(bottleneck=8), Tune(targets=("class_tokens",))], ("head",), 20_696),
    "adaptformer_32": ([AdaptFormer(bottleneck=32), Tune(targets=("class_tokens",))], ("head",), 70_040),
    "prefix_2": ([Prompts(count=2)], ("head",), 4_888),
    "prefix_8": ([Prompts(count=8)], ("head",), 17_176),
    # theirs has no gate: ours adds one number per head and block
    "tokens_deep_8": ([Prompts(count=8, kind="tokens")], ("head",), 8_984 + 8 * 4),
    "tokens_shallow_8": ([Prompts(count=8, kind="tokens", deep=False)], ("head",), 2_840 + 2 * 4),
}


@pytest.mark.parametrize("name", sorted(WHEAT))
def test_counts_equal_the_wheat_study(name):
    adapters, also, expected = WHEAT[name]
    backbone = TSViT(inputs=Inputs(PASTIS_BANDS), num_classes=19)
    model = nn.ModuleDict({"backbone": backbone, "head": ClassTokens(backbone.spec, 1)})
    for parameter in model.parameters():
        parameter.requires_grad_(requires_grad=False)
    for adapter in adapters:
        attach(model if "linear" in str(adapter) else backbone, adapter)
    head = model["head"]
    if "head" in also:
        head.requires_grad_(requires_grad=True)
    if "remap" in also:
        head.remap.requires_grad_(requires_grad=True)
    assert trainable(model) == expected
    assert f"{expected:,}" in trainable_table(model)
