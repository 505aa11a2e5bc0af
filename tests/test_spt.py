from __future__ import annotations

import base64
import copy
import dataclasses
import gc
import json
import weakref
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geomed.adapters import (
    SPT,
    AllocationRule,
    LoRA,
    Plan,
    Sensitivity,
    adapted_modules,
    attach,
    make_plan,
    measure_sensitivity,
    merge,
)
from geomed.adapters.allocation_rule import Ranking, sweep, within
from geomed.adapters.candidate import Candidate, candidates
from geomed.adapters.plan import Choice, pack, unpack
from geomed.adapters.sparse_linear import sparse_linear
from geomed.backbones.backbone import weights_hash
from geomed.backbones.block import plain_block, recomputing
from geomed.backbones.inputs import Inputs
from geomed.backbones.tsvit import TSViT, TSViTSize
from geomed.backbones.vit import ViT, ViTSize
from geomed.pixels import Pixels
from geomed.tokens import Tokens

# What the reference code makes of given sensitivities; see golden/README.md.
FOLDER = Path(__file__).parent / "golden"
GOLDEN = np.load(FOLDER / "spt_allocation.npz")
EXPECTED = json.loads((FOLDER / "spt_allocation.json").read_text())
SPARSE = np.load(FOLDER / "spt_sparse_linear.npz")


def golden_candidate(name: str, shape: tuple[int, ...]) -> Candidate:
    vector = "norm" in name or name.endswith("bias")
    columns = 1 if vector else shape[1]
    return Candidate(tensor=name, kind="vector" if vector else "matrix", rows=(0, shape[0]), columns=columns)


@pytest.fixture(scope="module")
def golden() -> Ranking:
    levels = {name.removeprefix("level/"): GOLDEN[name] for name in GOLDEN.files if name.startswith("level/")}
    scores = {name: torch.from_numpy(level).float() for name, level in levels.items()}
    return Ranking([golden_candidate(name, tuple(level.shape)) for name, level in levels.items()], scores)


@pytest.mark.parametrize("structure", ["lora", "adapter"])
def test_the_reference_sweep_gives_the_reference_configurations(golden, structure):
    rule = AllocationRule(structure=structure)
    budgets = {round(float(name.partition("/")[2]) * 1e6): name for name in EXPECTED if name.startswith(structure)}
    assert len(budgets) == 7
    for budget, top in sweep(golden, rule, list(budgets), besides=768).items():
        told = EXPECTED[budgets[budget]]
        pairs = [
            (one, *rule.trains(one, count))
            for one, count in zip(golden.candidates, golden.sensitive(top).tolist(), strict=True)
        ]
        whole = [(one, count) for one, trains, count in pairs if trains in {"all", structure}]
        assert [one.tensor for one, _ in whole if one.kind == "vector"] == told["vectors"]
        assert sum(count for _, count in whole) == told["structured"]
        matrices = [["0"] * 6 for _ in range(12)]
        for one, _ in whole:
            if one.kind == "matrix":
                matrices[int(one.block[7:])][["q", "k", "v", "proj", "fc1", "fc2"].index(one.operation)] = "1"
        assert ["".join(row) for row in matrices] == told["matrices"]
        places, before = [], 0
        for number, (one, trains, count) in enumerate(pairs):
            if trains == "entries":
                places.append(golden.entries(number, count) + before)
            before += one.size if trains in {"entries", "nothing"} else 0
        theirs = GOLDEN[f"entries/{told.get('entries_as', budgets[budget])}"]
        assert np.array_equal(np.concatenate(places), theirs)
        assert len(theirs) == told["unstructured"]
        assert golden.total(top, rule) + 768 == told["total"]


def test_the_sparse_linear_equals_the_reference():
    given = {name: torch.from_numpy(SPARSE[name]) for name in SPARSE.files}
    x = given["x"].requires_grad_()
    changes, of_bias = given["values"].requires_grad_(), given["bias_values"].requires_grad_()
    bias = given["b"].index_add(0, given["bias_index"], of_bias)
    places = given["rows"] * 64 + given["cols"]
    y = sparse_linear(x, given["w"], bias, changes, places)
    y.backward(given["grad_y"])
    torch.testing.assert_close(y, given["y"])
    torch.testing.assert_close(x.grad, given["grad_x"])
    torch.testing.assert_close(changes.grad, given["grad_values"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(of_bias.grad, given["grad_bias_values"])
    assert float(y.detach().double().sum()) == pytest.approx(1.8552868886617944, abs=1e-4)
    assert float(changes.grad.double().abs().sum()) == pytest.approx(920.9844107537065, rel=1e-5)


def sparse_case(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    places = torch.randperm(7 * 5)[:9].sort().values.int()
    x, changes = torch.randn(3, 4, 5, dtype=dtype), torch.randn(9, dtype=dtype)
    return x.requires_grad_(), torch.randn(7, 5, dtype=dtype), changes.requires_grad_(), places


def test_the_sparse_linear_has_the_gradients_of_the_dense_one(monkeypatch):
    monkeypatch.setattr("geomed.adapters.sparse_linear._AT_ONCE", 30)  # several parts, the last a smaller one
    x, weight, changes, places = sparse_case()
    bias = torch.randn(7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, b, v: sparse_linear(x, weight, b, v, places), (x, bias, changes))


def test_the_sparse_linear_keeps_nothing_that_can_be_computed_again():
    x, weight, changes, places = sparse_case()
    norm = nn.LayerNorm(5).double()
    y = norm(x)
    kept = weakref.ref(y)
    with recomputing(norm, x, y):
        out = sparse_linear(y, weight, None, changes, places)
    del y
    gc.collect()
    assert kept() is None
    out.square().sum().backward()
    again = changes.grad.clone()
    changes.grad = None
    sparse_linear(norm(x), weight, None, changes, places).square().sum().backward()
    torch.testing.assert_close(again, changes.grad)


@pytest.mark.slow
@pytest.mark.compiles
def test_the_sparse_linear_compiles_with_its_gradients():
    x, weight, changes, places = sparse_case()
    compiled = torch.compile(sparse_linear, fullgraph=True, backend="aot_eager")
    found = []
    for call in (compiled, sparse_linear):
        x.grad = changes.grad = None
        y = call(x, weight, None, changes, places)
        y.square().sum().backward()
        found.append((y.detach(), x.grad, changes.grad))
    torch.testing.assert_close(found[0], found[1])


def test_the_sparse_linear_in_bfloat16():
    x, weight, changes, places = sparse_case(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = sparse_linear(x, weight, None, changes, places)
    y.float().square().sum().backward()
    assert (y.dtype, x.grad.dtype, changes.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    rough = changes.grad.clone()
    changes.grad = None
    sparse_linear(x, weight, None, changes, places).square().sum().backward()
    torch.testing.assert_close(rough, changes.grad, rtol=0.05, atol=0.5)


# Parameters of He et al.'s modules on ViT-B: of a 768 x 768 matrix and of the MLP's, at rank 8.
@pytest.mark.parametrize(
    ("structure", "square", "wide", "tall", "all_of_them"),
    [("lora", 12_288, 30_720, 30_720, 1_327_104), ("adapter", 13_064, 52_232, 13_064, None)],
)
def test_modules_cost_what_was_published(structure, square, wide, tall, all_of_them):
    rule = AllocationRule(structure=structure)

    def matrix(name: str, rows: int, columns: int) -> int:
        tensor = f"blocks.0.{name}.weight"
        return rule.cost(Candidate(tensor=tensor, kind="matrix", rows=(0, rows), columns=columns))

    found = [matrix(name, 768, 768) for name in ("attn.q", "attn.k", "attn.v", "attn.proj")]
    found += [matrix("mlp.fc1", 3072, 768), matrix("mlp.fc2", 768, 3072)]
    assert found == [*[square] * 4, wide, tall]
    assert all_of_them in {None, 12 * sum(found)}


def test_a_module_starts_at_its_share_of_sensitive_entries():
    rule = AllocationRule()
    one = Candidate(tensor="blocks.0.attn.proj.weight", kind="matrix", rows=(0, 768), columns=768)
    bias = Candidate(tensor="blocks.0.attn.proj.bias", kind="vector", rows=(0, 768))
    assert [rule.trains(one, count) for count in (0, 1228, 1229)] == [
        ("nothing", 0),
        ("entries", 1228),
        ("lora", 12_288),
    ]
    assert [rule.trains(bias, count) for count in (0, 153, 154)] == [("nothing", 0), ("entries", 153), ("all", 768)]
    only = AllocationRule(structured_only=True)
    assert only.trains(one, 1228) == ("nothing", 0)


def small_ranking(*, ties: bool) -> tuple[Ranking, dict[str, Tensor]]:
    shapes = {
        "blocks.0.fc1.weight": (12, 6),
        "blocks.0.fc1.bias": (12,),
        "norm.weight": (6,),
        "blocks.1.qkv.weight": (18, 6),
    }
    drawn = torch.Generator().manual_seed(4)
    scores = {name: torch.rand(shape, generator=drawn) ** 2 for name, shape in shapes.items()}
    if ties:
        scores = {name: (4 * score).round() / 4 for name, score in scores.items()}
    every = [golden_candidate(name, shape) for name, shape in shapes.items() if "qkv" not in name]
    every += [
        Candidate(tensor="blocks.1.qkv.weight", kind="matrix", rows=(row, row + 6), columns=6) for row in (0, 6, 12)
    ]
    return Ranking(every, scores), scores


@pytest.mark.parametrize("ties", [False, True])
def test_ranks_are_those_of_one_sort(ties):
    ranking, scores = small_ranking(ties=ties)
    # independent: one list of (score, candidate, place), sorted
    every = [
        (-value, number, place)
        for number, one in enumerate(ranking.candidates)
        for place, value in enumerate(one.of(scores[one.tensor]).flatten().tolist())
        if value
    ]
    every.sort()
    assert ranking.length == len(every)
    for top in range(len(every) + 3):
        best = every[:top]
        for number, count in enumerate(ranking.sensitive(top).tolist()):
            places = sorted(place for _, owner, place in best if owner == number)
            assert count == len(places)
            if count:
                assert ranking.entries(number, count).tolist() == places


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("structure", ["lora", "adapter"])
def test_a_budget_is_kept_and_used(ties, only, structure):
    ranking, _ = small_ranking(ties=ties)
    rule = AllocationRule(structure=structure, rank=2, alpha=3, beta=2, structured_only=only)
    totals = [ranking.total(top, rule) for top in range(ranking.length + 1)]
    assert totals == sorted(totals)
    before = 0
    for budget in range(1, totals[-1] + 20, 11):
        if budget < next(total for total in totals if total):
            with pytest.raises(ValueError, match="the budget must hold the smallest allocation"):
                within(ranking, rule, budget)
            continue
        top = within(ranking, rule, budget)
        assert totals[top] <= budget
        assert top == ranking.length or totals[top + 1] > budget
        assert top >= before
        before = top


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: AllocationRule(rank=0), "rank, alpha and beta must be at least 1"),
        (lambda: AllocationRule(alpha=0.5), "rank, alpha and beta must be at least 1"),
        (lambda: AllocationRule(beta=float("nan")), "rank, alpha and beta must be at least 1"),
        (lambda: within(small_ranking(ties=False)[0], AllocationRule(rank=7), 100), "rank must not exceed the width"),
        (lambda: Ranking(small_ranking(ties=False)[0].candidates, {}), "needs 72 finite scores"),
        (lambda: Candidate(tensor="a", kind="vector", rows=(3, 3)), "is none"),
        (lambda: candidates(nn.ReLU()), "has no Linear in blocks and no LayerNorm"),
    ],
)
def test_bad_input_is_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_no_sensitivity_at_all_is_told():
    ranking, scores = small_ranking(ties=False)
    nothing = Ranking(ranking.candidates, {name: 0 * score for name, score in scores.items()})
    with pytest.raises(ValueError, match="no weight has any sensitivity"):
        within(nothing, AllocationRule(rank=2), 100)


def rgb() -> Inputs:
    return Inputs(("red", "green", "blue"), [0.5] * 3, [0.2] * 3)


def small_vit(**more: object) -> ViT:
    torch.manual_seed(0)
    size = ViTSize(dim=12, depth=2, heads=2, patch=4, mlp_ratio=2)
    return ViT("vit_tiny_patch16_224", inputs=rgb(), size=size, image_size=8, **more)


def small_tsvit() -> TSViT:
    torch.manual_seed(0)
    size = TSViTSize(dim=8, heads=2, head_dim=6, temporal_depth=1, spatial_depth=1)
    return TSViT(inputs=rgb(), num_classes=2, size=size, image_size=4)


def batches(count: int = 3) -> list[dict[str, Tensor]]:
    drawn = torch.Generator().manual_seed(7)
    return [
        {"values": torch.rand(2, 3, 8, 8, generator=drawn), "labels": torch.randint(0, 4, (2,), generator=drawn)}
        for _ in range(count)
    ]


class Task(nn.Module):
    """A backbone and a head, and their loss."""

    def __init__(self, **more: object) -> None:
        super().__init__()
        self.backbone = small_vit(**more)
        self.head = nn.Linear(12, 4)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        (tokens,) = self.backbone(Pixels(values=batch["values"]))
        return F.cross_entropy(self.head(tokens.data.mean(1)), batch["labels"])


def naive(task: Task, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    task = copy.deepcopy(task).eval()
    named = dict(task.backbone.named_parameters())
    total = {name: torch.zeros_like(value) for name, value in named.items()}
    for part in parts:
        found = torch.autograd.grad(task.loss(part), list(named.values()))
        for name, gradient in zip(named, found, strict=True):
            total[name] += gradient.square()
    return total


@pytest.mark.parametrize("reduction", ["batch", "sample"])
def test_sensitivity_is_the_sum_of_squared_gradients(reduction):
    task = Task(drop_path=0.5).train()
    found = measure_sensitivity(task.backbone, task.loss, batches(), head=task.head, reduction=reduction)
    singly = [{name: value[n : n + 1] for name, value in one.items()} for one in batches() for n in range(2)]
    expected = naive(task, batches() if reduction == "batch" else singly)
    assert found.samples == 6
    assert set(found.scores) == {name for name in expected if not name.startswith("stem.")}
    for name, score in found.scores.items():
        torch.testing.assert_close(score, expected[name], rtol=1e-5, atol=1e-12)
        assert (score > 0).any()


def test_sensitivity_leaves_the_network_as_it_was():
    task = Task(drop_path=0.5).train()
    task.backbone.blocks[1].eval()
    task.backbone.blocks[0].requires_grad_(requires_grad=False)
    for number, parameter in enumerate(task.parameters()):
        parameter.grad = None if number % 2 else torch.full_like(parameter, number)
    told = [(p.requires_grad, p.grad, p.detach().clone()) for p in task.parameters()]
    modes = [module.training for module in task.modules()]
    with torch.no_grad():
        measure_sensitivity(task.backbone, task.loss, batches(1), head=task.head)
    for parameter, (trains, gradient, value) in zip(task.parameters(), told, strict=True):
        assert parameter.requires_grad == trains
        assert parameter.grad is gradient
        assert torch.equal(parameter, value)
        assert not parameter._post_accumulate_grad_hooks
    assert [module.training for module in task.modules()] == modes


def test_one_gradient_is_in_memory_at_a_time():
    task = Task()
    alive = []

    def watch(_: Tensor) -> None:
        alive.append(sum(parameter.grad is not None for parameter in task.parameters()))

    for parameter in task.parameters():
        parameter.register_post_accumulate_grad_hook(watch)  # before those that free the gradients
    measure_sensitivity(task.backbone, task.loss, batches(2), head=task.head)
    assert set(alive) == {1}
    assert len(alive) == 2 * len({one.tensor for one in candidates(task.backbone)})
    assert all(parameter.grad is None for parameter in task.parameters())


def test_gradients_that_are_not_finite_are_told_by_name():
    task = Task()
    weight = task.backbone.blocks[1].mlp.mlp.fc2.weight

    def broken(batch: dict[str, Tensor]) -> Tensor:
        return task.loss(batch) + (0 * weight).sum().sqrt()

    with pytest.raises(
        ValueError, match=r"gradient of blocks\.1\.mlp\.mlp\.fc2\.weight is not finite at batch 0; look"
    ):
        measure_sensitivity(task.backbone, broken, batches(), head=task.head)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in task.parameters())
    spoilt = batches()
    spoilt[1]["values"][0, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"and \d+ more is not finite at batch 1, the loss is nan"):
        measure_sensitivity(task.backbone, task.loss, spoilt, head=task.head)


def test_sensitivity_needs_samples_and_a_plain_backbone():
    task = Task()
    with pytest.raises(ValueError, match="at least one batch"):
        measure_sensitivity(task.backbone, task.loss, [], head=task.head)
    attach(task.backbone, LoRA(rank=2))
    with pytest.raises(ValueError, match="has adapters; detach or merge them first"):
        measure_sensitivity(task.backbone, task.loss, batches(), head=task.head)


def test_what_is_chosen_from():
    vit = {str(one): one for one in candidates(small_vit())}
    assert len(vit) == 2 * (2 * 2 + 6 * 2) + 2
    assert vit["blocks.0.attention.attn.qkv.weight[v]"].rows == (24, 36)
    assert vit["blocks.0.attention.attn.qkv.bias[k]"].rows == (12, 24)
    assert vit["blocks.1.mlp.mlp.fc1.weight"].operation == "fc1"
    assert vit["norm.weight"].block == ""
    assert not [name for name in vit if name.startswith("stem.")]
    tsvit = {str(one): one for one in candidates(small_tsvit())}
    assert len(tsvit) == 2 * (2 * 2 + 3 + 3 * 2) + 2 * 2  # its qkv has no bias
    assert tsvit["temporal.blocks.0.attention.attn.qkv.weight[q]"].block == "temporal.blocks.0"
    assert not [name for name in tsvit if name.startswith(("patch", "dates", "class_tokens", "position"))]


def measured(backbone: nn.Module) -> Sensitivity:
    """Sensitivities that are drawn, of which a few entries of each tensor are much the largest."""
    drawn = torch.Generator().manual_seed(3)
    scores = {}
    for name in dict.fromkeys(one.tensor for one in candidates(backbone)):
        shape = backbone.get_parameter(name).shape
        scores[name] = torch.rand(shape, generator=drawn) ** 6 * 10 ** (2 * torch.randn(1, generator=drawn))
    return Sensitivity(scores=scores, samples=3, reduction="batch")


def small_plan(backbone: nn.Module, budget: int = 500, **rule: object) -> Plan:
    return make_plan(backbone, measured(backbone), budget=budget, rule=AllocationRule(rank=2, **rule))


def test_a_plan_round_trips_and_can_be_read(tmp_path):
    plan = small_plan(small_vit())
    assert {choice.trains for choice in plan.choices} == {"nothing", "entries", "all", "lora"}
    plan.save(tmp_path / "deep" / "plan.json")
    path = str(tmp_path / "deep" / "plan.json")
    assert Plan.of(path) == plan
    content = json.loads(Path(path).read_text())
    assert content["summary"] == str(plan)
    assert Plan.of(content) == plan
    assert Plan.of(dataclasses.asdict(plan)) == plan
    assert all(choice["why"] for choice in content["choices"])
    assert "are sensitive" in Path(path).read_text()
    assert plan.trained <= plan.budget
    assert f"{plan.trained:,}" in plan.table().splitlines()[-1]
    assert len(repr(plan)) < 200
    assert sum(choice.share for choice in plan.choices) == pytest.approx(1, abs=1e-4)
    same = small_plan(small_vit())
    assert same == plan
    assert hash(same) == hash(plan)


def test_a_plan_becomes_what_it_says(tmp_path):
    backbone = small_vit()
    plan = small_plan(backbone)
    plan.save(tmp_path / "plan.json")
    adapter = SPT(plan=str(tmp_path / "plan.json"))
    (tmp_path / "plan.json").unlink()
    assert adapter == SPT(plan=plan) == SPT(plan=json.loads(json.dumps(dataclasses.asdict(adapter)))["plan"])
    attach(backbone, adapter)
    assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) == plan.trained


@pytest.mark.parametrize("places", [[0], [5], [0, 1, 2], [3, 70_000, 70_001, 2**31]])
def test_places_pack(places):
    packed = pack(np.array(places))
    assert unpack(packed, len(places)).tolist() == places
    with pytest.raises(ValueError, match="need as many places"):
        unpack(packed, len(places) + 1)


def test_broken_packs_are_told():
    assert unpack("", 0).tolist() == []
    with pytest.raises(ValueError, match="must be packed numbers"):
        unpack("no base64!", 3)
    with pytest.raises(ValueError, match="must be packed numbers"):
        unpack(base64.b64encode(b"no zlib").decode(), 3)
    bomb = base64.b64encode(zlib.compress(bytes(10**6))).decode()
    with pytest.raises(ValueError, match="need as many places"):
        unpack(bomb, 3)
    one = Candidate(tensor="norm.weight", kind="vector", rows=(0, 4))
    with pytest.raises(ValueError, match="places must ascend within its 4"):
        Choice(candidate=one, trains="entries", count=1, sensitive=1, share=0.0, packed=pack(np.array([4]))).places()


def test_broken_plans_are_told(tmp_path):
    path = tmp_path / "plan.json"
    with pytest.raises(ValueError, match=r"plan\.json: there is no such plan; make it with geomed sensitivity"):
        SPT(plan=str(path))
    path.write_text("{")
    with pytest.raises(ValueError, match="not readable as JSON"):
        SPT(plan=str(path))
    for content in ("[]", "[1]", "3", "{}", '{"choices": [{}]}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"plan\.json: holds no plan"):
            SPT(plan=str(path))
    small_plan(small_vit()).save(path)
    path.write_text(path.read_text().replace('"samples"', '"simples"'))
    with pytest.raises(ValueError, match="holds no plan"):
        SPT(plan=str(path))


def test_plans_of_other_backbones_are_refused():
    plan = small_plan(small_vit())
    other = small_vit()
    with torch.no_grad():
        other.blocks[0].mlp.norm.bias[0] += 1
    for backbone, told in (
        (other, "the plan was made on weights .* what is sensitive depends on them"),
        (small_tsvit(), r"the plan is for another backbone: blocks\.0.* is not there in this TSViT"),
        (nn.ModuleDict({"backbone": small_vit()}), "is not there in this ModuleDict"),
        (ViT("test_vit", inputs=rgb()), r"the plan is for another backbone: .* is \(64,\)|\[.\] is \("),
    ):
        before = weights_hash(backbone.state_dict())
        with pytest.raises(ValueError, match=told):
            attach(backbone, SPT(plan=plan))
        assert not adapted_modules(backbone)
        assert weights_hash(backbone.state_dict()) == before


def one_block(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.ModuleDict({"blocks": nn.ModuleList([plain_block(6, heads=2, head_dim=3, hidden=8)])}).double()


def plan_of(root: nn.Module, trained: dict[str, tuple[str, list[int]]], structure: str = "lora") -> Plan:
    """A plan that trains exactly this: candidate → how, and the places of entries."""
    rule = AllocationRule(structure=structure, rank=2)
    choices = []
    for one in candidates(root):
        trains, places = trained.get(str(one).removeprefix("blocks.0."), ("nothing", []))
        count = {"nothing": 0, "entries": len(places)}.get(trains)
        choices.append(
            Choice(
                candidate=one,
                trains=trains,
                count=rule.cost(one) if count is None else count,
                sensitive=1,
                share=0.0,
                packed=pack(np.array(places)) if places else "",
            )
        )
    base = weights_hash(root.state_dict())
    return Plan(rule=rule, budget=10**6, top=1, samples=1, reduction="batch", base=base, choices=tuple(choices))


def moved(root: nn.Module) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in root.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=drawn, dtype=torch.float64))
    return {name: value for name, value in root.named_parameters() if value.requires_grad}


def run(root: nn.Module) -> Tensor:
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return root["blocks"][0](Tokens(x, (5,))).data


def test_low_rank_updates_vectors_and_entries_add_to_the_weights():
    root = one_block()
    plain = copy.deepcopy(root)
    attach(
        root,
        SPT(
            plan=plan_of(
                root,
                {
                    "attention.attn.qkv.weight[k]": ("lora", []),
                    "attention.attn.qkv.weight[v]": ("entries", [0, 7, 35]),
                    "attention.attn.proj.weight": ("lora", []),
                    "attention.attn.proj.bias": ("entries", [1, 4]),
                    "attention.norm.weight": ("entries", [5]),
                    "attention.norm.bias": ("all", []),
                    "mlp.mlp.fc1.weight": ("entries", [3, 40]),
                    "mlp.mlp.fc1.bias": ("all", []),
                },
            )
        ),
    )
    torch.testing.assert_close(run(root), run(plain), rtol=0, atol=0)
    trained = moved(root)
    # by hand, into a plain block
    attention, mlp = plain["blocks"][0].attention, plain["blocks"][0].mlp
    branch = root["blocks"][0].attention
    with torch.no_grad():
        qkv = branch.attn.qkv
        attention.attn.qkv.weight[6:12] += qkv.up @ qkv.down
        for place, value in zip((0, 7, 35), qkv.base.of_weight.values, strict=True):
            attention.attn.qkv.weight[12 + place // 6, place % 6] += value
        attention.attn.proj.weight += branch.attn.proj.up @ branch.attn.proj.down
        attention.attn.proj.bias[[1, 4]] += branch.attn.proj.base.of_bias.values
        attention.norm.weight[5] += branch.norm.of_weight.values[0]
        attention.norm.bias += branch.norm.of_bias.values
        fc1 = root["blocks"][0].mlp.mlp.fc1
        for place, value in zip((3, 40), fc1.of_weight.values, strict=True):
            mlp.mlp.fc1.weight[place // 6, place % 6] += value
        mlp.mlp.fc1.bias += fc1.of_bias.values
    torch.testing.assert_close(run(root), run(plain), rtol=0, atol=1e-12)
    run(root).square().sum().backward()
    run(plain).square().sum().backward()
    torch.testing.assert_close(fc1.of_weight.values.grad, mlp.mlp.fc1.weight.grad.flatten()[[3, 40]])
    torch.testing.assert_close(fc1.of_bias.values.grad, mlp.mlp.fc1.bias.grad)
    torch.testing.assert_close(branch.norm.of_weight.values.grad, attention.norm.weight.grad[[5]])
    torch.testing.assert_close(branch.attn.proj.base.of_bias.values.grad, attention.attn.proj.bias.grad[[1, 4]])
    torch.testing.assert_close(
        qkv.base.of_weight.values.grad, attention.attn.qkv.weight.grad[12:].flatten()[[0, 7, 35]]
    )
    assert len(trained) == 10
    outputs = run(root)
    merge(root)
    torch.testing.assert_close(run(root), outputs, rtol=0, atol=1e-12)


def test_bottlenecks_read_outputs_and_beside_proj_inputs():
    root = one_block()
    plain = copy.deepcopy(root)
    names = ("attention.attn.qkv.weight[q]", "attention.attn.qkv.weight[v]", "attention.attn.proj.weight")
    trained = dict.fromkeys((*names, "mlp.mlp.fc1.weight"), ("adapter", []))
    attach(root, SPT(plan=plan_of(root, trained, "adapter")))
    torch.testing.assert_close(run(root), run(plain), rtol=0, atol=0)
    moved(root)
    wrapped, block = root["blocks"][0], plain["blocks"][0]
    # by hand, in the plain block's Linears
    for name, here, slices in (
        ("attention.attn.qkv", wrapped.attention.attn.qkv, [slice(0, 6), slice(12, 18)]),
        ("attention.attn.proj", wrapped.attention.attn.proj, None),
        ("mlp.mlp.fc1", wrapped.mlp.mlp.fc1, [slice(0, 8)]),
    ):

        def changed(_: nn.Module, given: tuple[Tensor], y: Tensor, here=here, slices=slices) -> Tensor:
            y = y.clone()
            for number, rows in enumerate(slices or [slice(None)]):
                read = given[0] if slices is None else y[..., rows].clone()
                y[..., rows] += here.up[number](F.gelu(here.down[number](read)))
            return y

        block.get_submodule(name).register_forward_hook(changed)
    torch.testing.assert_close(run(root), run(plain), rtol=0, atol=1e-12)


def test_the_reference_start_is_drawn():
    root = one_block()
    adapter = SPT(plan=plan_of(root, {"mlp.mlp.fc1.weight": ("lora", [])}), init="reference")
    assert not adapter.identity
    attach(root, adapter)
    drawn = torch.cat([value.flatten() for value in root.parameters() if value.requires_grad])
    assert 0.01 < drawn.std() < 0.03
    assert SPT(plan=plan_of(one_block(), {"mlp.mlp.fc1.bias": ("all", [])}), init="reference").identity


def test_it_goes_in_around_other_adapters():
    root = one_block()
    plan = plan_of(
        root,
        {
            "mlp.mlp.fc1.weight": ("entries", [2, 9]),
            "mlp.mlp.fc1.bias": ("entries", [0]),
            "mlp.mlp.fc2.bias": ("all", []),
        },
    )
    attach(root, LoRA(rank=2, targets=("fc1", "fc2")))
    attach(root, SPT(plan=plan))
    moved(root)
    outputs = run(root)
    outputs.square().sum().backward()
    assert all(value.grad is not None for value in root.parameters() if value.requires_grad)
    merge(root)
    torch.testing.assert_close(run(root), outputs, rtol=0, atol=1e-12)
