from __future__ import annotations

from functools import partial

import lightning
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.layers import set_fused_attn

from geomed.adapters.adapter import attach, merge
from geomed.adapters.prompts import Prompts
from geomed.backbones.attention import attention_maps
from geomed.backbones.cnn import Cnn
from geomed.backbones.inputs import Inputs
from geomed.backbones.vit import ViT, ViTSize
from geomed.data.case_ids import CaseIds
from geomed.data.datamodule import DataModule
from geomed.data.folder_of_classes import FolderOfClasses
from geomed.data.rendition import Rendition
from geomed.evaluation.patient_splits import ByPatient
from geomed.heads.pooled import Pooled
from geomed.pixels import Pixels
from geomed.public import DVPT, SSF, VPT, AdaptFormer, ExPLoRA, LoRA, Peft
from geomed.tasks.classification import Classification

SIZE = ViTSize(dim=16, depth=2, heads=2, patch=8)


def vit(name="vit_tiny_patch16_224"):
    torch.manual_seed(0)
    inputs = Inputs(("red", "green", "blue"), [0.5] * 3, [0.25] * 3)
    return perturbed(ViT(name, inputs=inputs, image_size=16, size=SIZE))


def perturbed(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval().double()


def pixels():
    return Pixels(values=torch.rand(2, 3, 16, 20, dtype=torch.float64))


def plain(backbone, name):
    """The same network as timm has it, which gives its attention matrices away."""
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 16}
    set_fused_attn(enable=False)
    try:
        norm = partial(torch.nn.LayerNorm, eps=SIZE.norm_eps)
        model = timm.create_model(name, num_classes=0, dynamic_img_size=True, norm_layer=norm, **sizes).double().eval()
    finally:
        set_fused_attn(enable=True)
    names = {"attention.attn.": "attn.", "attention.norm.": "norm1.", "mlp.norm.": "norm2.", "mlp.mlp.": "mlp."}
    names |= {"attention.scale.": "ls1.", "mlp.scale.": "ls2.", "stem.": ""}
    state = {}
    for key, value in backbone.state_dict().items():
        own = next((key.replace(old, new) for old, new in names.items() if old in key), key)
        state[own] = value
    assert not model.load_state_dict(state, strict=False).missing_keys
    return model


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
@pytest.mark.parametrize("asking", ["class", "mean"])
def test_the_shares_are_those_of_timms_attention_matrices(name, asking):
    backbone, given = vit(name), pixels()
    model, matrices = plain(backbone, name), []
    model.blocks[-1].attn.attn_drop.register_forward_pre_hook(lambda _, read: matrices.append(read[0]))
    with torch.no_grad():
        padded = F.pad((given.values - 0.5) / 0.25, (0, 4))
        features = model.forward_features(padded)
        torch.testing.assert_close(backbone(given)[0].data, features)
    (matrix,) = matrices
    prefix = model.num_prefix_tokens
    rows = matrix[:, :, :1] if asking == "class" else matrix[:, :, prefix:]
    expected = rows[..., prefix:].mean((1, 2)).reshape(2, 2, 3)
    torch.testing.assert_close(attention_maps(backbone, given, asking=asking), expected, rtol=1e-12, atol=0)


ADAPTERS = [
    LoRA(rank=2),
    VPT(count=3),
    SSF(),
    DVPT(),
    ExPLoRA(rank=2),
    Peft(method="LORA", options={"r": 2}),
    Prompts(count=2),
    Prompts(count=2, kind="tokens"),
    AdaptFormer(bottleneck=2),
]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda one: type(one).__name__)
def test_adapters_are_seen_and_nothing_stays_behind(adapter, monkeypatch):
    backbone, given = vit(), pixels()
    attach(backbone, adapter)
    torch.manual_seed(1)
    perturbed(backbone)
    asked, attend = [], F.scaled_dot_product_attention

    def spy(q, k, v, **given):
        asked.append((q, k))
        return attend(q, k, v, **given)

    answer = backbone(given)[0].data
    with monkeypatch.context() as patched:
        patched.setattr(F, "scaled_dot_product_attention", spy)
        found = attention_maps(backbone, given)
    q, k = [(q, k) for q, k in asked if q.shape == k.shape and q.shape[2] >= 7][-1]
    shares = (q[:, :, :1] @ k.transpose(-2, -1) / 8**0.5).softmax(-1)
    torch.testing.assert_close(found, shares[..., -6:].mean((1, 2)).reshape(2, 2, 3), rtol=1e-12, atol=0)
    assert not any(module._forward_hooks for module in backbone.modules())
    torch.testing.assert_close(backbone(given)[0].data, answer, rtol=0, atol=0)


def test_low_rank_updates_of_qkv_equal_their_sum_with_the_weight():
    backbone, given = vit(), pixels()
    attach(backbone, LoRA(rank=2))
    perturbed(backbone)
    adapted = attention_maps(backbone, given)
    merge(backbone)
    torch.testing.assert_close(adapted, attention_maps(backbone, given), rtol=1e-9, atol=0)


def test_who_has_no_such_attention_has_no_map():
    given = Pixels(values=torch.rand(1, 3, 32, 32))
    inputs = Inputs(("red", "green", "blue"), [0.5] * 3, [0.25] * 3)
    parallel = ViT("vit_small_patch16_18x2_224", inputs=inputs, image_size=32, size=SIZE)
    assert attention_maps(parallel.eval(), given) is None
    assert attention_maps(Cnn("resnet18", inputs=inputs).eval(), given) is None


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*log_every_n_steps", "ignore:.*LeafSpec", "ignore:.*litlogger"
)
def test_a_test_leaves_maps_of_its_worst_errors(tmp_path):
    draw = np.random.default_rng(0)
    for label in ("no", "yes"):
        (tmp_path / "scans" / label).mkdir(parents=True)
        for number in range(8):
            pixels = draw.integers(0, 255, (20, 20), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "scans" / label / f"{label}{number}.png")
    source = FolderOfClasses(
        folder=str(tmp_path / "scans"),
        patients="([a-z]+[0-9])",
        by=ByPatient(fractions=(0.25, 0.25, 0.5)),
        rendition=Rendition(size=20),
        ids=CaseIds(key_file=str(tmp_path / "key")),
    )
    torch.manual_seed(0)
    backbone = ViT("vit_tiny_patch16_224", inputs=Inputs(("grey",), [0.5], [0.25]), image_size=16, size=SIZE)
    model = Classification(backbone=backbone, head=lambda spec: Pooled(spec, 2), adapter=LoRA(rank=2))
    evaluation = tmp_path / "run" / "evaluation"
    (evaluation / "attention").mkdir(parents=True)
    (evaluation / "attention" / "earlier.png").touch()
    drawn = []
    for _ in range(2):
        run = lightning.Trainer(
            default_root_dir=tmp_path / "run", accelerator="cpu", logger=False, enable_progress_bar=False
        )
        run.test(model, DataModule(source, batch_size=8), verbose=False)
        drawn.append({path.name: path.read_bytes() for path in (evaluation / "attention").glob("*.png")})
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == {path.name for path in (evaluation / "thumbnails").glob("*.png")} != set()
    for name in drawn[0]:
        with Image.open(evaluation / "attention" / name) as picture:
            assert (picture.size, picture.mode, picture.info) == ((20, 20), "RGB", {})
            pixels = np.asarray(picture).astype(int)
        assert (pixels.max(-1) != pixels.min(-1)).any()  # colours
