"""Galileo's nano encoder as a ViT of one date: the real pre-trained network that explora_real.py extends.

Not a script: imported. Galileo (Tseng et al., ICML 2025, arXiv 2502.09356) makes a token of every group of channels,
place and month; a ViT here makes one of every place. So of the released weights (nasaharvest/galileo at commit 0f0b5b9,
data/models/nano, MIT)

- exact: the four blocks and the last norm, with q, k and v fused (`block_difference` holds them against a plain
  computation), the scaling of the inputs, the pseudo-inverse resampling of 8 x 8 kernels to a smaller patch, and the
  sine and cosine of places, of the month and of the first date;
- approximated: the tokens. One convolution over all bands is the *mean* of the groups' own, and the mean of their
  channel embeddings, with date and month, stands in its bias. The blocks then see one token for each place where they
  were trained on several, and groups are averaged before the blocks instead of behind them. The mean keeps tokens as
  long as those that the blocks were trained on; the sum makes them about twice as long. `likeness` measures both;
- left out: NDVI, which is no linear function of the bands and has a token of its own in Galileo, and all that a scene
  lacks (here B8A, B11 and B12, radar, weather, height), as Galileo itself does where channels are missing. B01 is no
  channel of Galileo's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from geomed.backbones.inputs import Inputs
from geomed.backbones.vit import ViT, ViTSize
from geomed.tokens import Tokens

if TYPE_CHECKING:
    from pathlib import Path

GROUPS = {"S2_RGB": ("B02", "B03", "B04"), "S2_Red_Edge": ("B05", "B06", "B07"), "S2_NIR_10m": ("B08",)}
BANDS = tuple(band for group in GROUPS.values() for band in group)
_KNOWN = ("VV", "VH", *BANDS, "B8A", "B11", "B12", "NDVI")  # the order of the file of statistics
_EMBEDDED = ("S1", *GROUPS, "S2_NIR_20m", "S2_SWIR", "NDVI")  # the order of the channel embeddings
_NUMBERS = 1e4  # the statistics are of reflectance times this


@dataclass(frozen=True, kw_only=True)
class Galileo:
    """The released encoder, and what it is told of the images."""

    folder: Path
    """With encoder.pt, config.json and normalization.json."""

    window: int
    """Side of an image in pixels."""

    patch: int
    """Side of a token in pixels, at most 8."""

    month: int
    """Of the images, from 0."""

    metres: float
    """Side of a pixel."""

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The released tensors."""
        return torch.load(self.folder / "encoder.pt", map_location="cpu", weights_only=True)

    @cached_property
    def about(self) -> dict[str, Any]:
        """Depth, heads and widths as released."""
        return json.loads((self.folder / "config.json").read_text())["model"]["encoder"]

    @property
    def side(self) -> int:
        """Tokens along one side of an image."""
        return self.window // self.patch

    def inputs(self) -> Inputs:
        """Galileo's scaling, (x - (mean - 2 std)) / 4 std, of reflectance."""
        known = json.loads((self.folder / "normalization.json").read_text())[str(len(_KNOWN))]
        mean, std = ([known[name][_KNOWN.index(band)] / _NUMBERS for band in BANDS] for name in ("mean", "std"))
        least = [middle - 2 * width for middle, width in zip(mean, std, strict=True)]
        return Inputs(BANDS, least, [4 * width for width in std])

    def plain(self) -> ViT:
        """A network of the same shape with random weights; its positions are Galileo's in any case."""
        size = ViTSize(
            dim=self.about["embedding_size"],
            depth=self.about["depth"],
            heads=self.about["num_heads"],
            patch=self.patch,
            mlp_ratio=self.about["mlp_ratio"],
            norm_eps=1e-5,
        )
        vit = ViT("vit_base_patch16_gap_224", inputs=self.inputs(), image_size=self.window, size=size)
        with torch.no_grad():
            vit.stem.pos_embed.copy_(self._encoding("place"))
        return vit

    def vit(self) -> ViT:
        """The network with the released weights, as this module's docstring says."""
        vit = self.plain()
        state = {"norm.weight": self.state["norm.weight"], "norm.bias": self.state["norm.bias"]}
        for number in range(self.about["depth"]):
            for kind in ("weight", "bias"):
                old = {
                    name: self.state[f"blocks.{number}.{name}.{kind}"]
                    for name in ("norm1", "attn.q", "attn.k", "attn.v", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
                }
                new = {
                    "attention.norm": old["norm1"],
                    "attention.attn.qkv": torch.cat([old[f"attn.{part}"] for part in "qkv"]),
                    "attention.attn.proj": old["attn.proj"],
                    "mlp.norm": old["norm2"],
                    "mlp.mlp.fc1": old["mlp.fc1"],
                    "mlp.mlp.fc2": old["mlp.fc2"],
                }
                state |= {f"blocks.{number}.{name}.{kind}": value for name, value in new.items()}
        kernels, biases = zip(*(self._kernel(group) for group in GROUPS), strict=True)
        said = torch.stack([self._encoding("channels", group) for group in GROUPS]).mean(0)
        # every place has the same channel embedding, date and month: they are a bias
        state["stem.patch_embed.proj.weight"] = torch.cat(kernels, 1) / len(GROUPS)
        state["stem.patch_embed.proj.bias"] = torch.stack(biases).mean(0) + said[0]
        state["stem.pos_embed"] = vit.stem.pos_embed.detach()
        state |= {f"inputs.{name}": value for name, value in vit.inputs.state_dict().items()}
        vit.load_state_dict(state)
        return vit

    def own_tokens(self, values: Tensor, *, ndvi: bool) -> Tensor:
        """Images [B, C, H, W] in reflectance → the tokens [B, G, N, D] that Galileo makes of them."""
        scaled = self.inputs()(values)
        images = {group: scaled[:, [BANDS.index(band) for band in bands]] for group, bands in GROUPS.items()}
        if ndvi:  # it enters as it is
            near, red = values[:, [BANDS.index("B08")]], values[:, [BANDS.index("B04")]]
            images["NDVI"] = (near - red) / (near + red).clamp(min=1e-6)
        made = []
        for group, image in images.items():
            kernel, bias = self._kernel(group)
            tokens = F.conv2d(image, kernel, bias, stride=self.patch).flatten(2).mT
            made.append(tokens + self._encoding("channels", group) + self._encoding("place"))
        return torch.stack(made, 1)

    def own(self, values: Tensor, *, ndvi: bool) -> Tensor:
        """Images → Galileo's own features [B, N, D]: its blocks on all tokens, the mean over groups."""
        tokens = self.own_tokens(values, ndvi=ndvi)
        through = self.blocks(rearrange(tokens, "b g n d -> b (g n) d"))
        through = F.layer_norm(through, through.shape[-1:], self.state["norm.weight"], self.state["norm.bias"])
        return rearrange(through, "b (g n) d -> b g n d", g=tokens.shape[1]).mean(1)

    def blocks(self, x: Tensor) -> Tensor:
        """Tokens [B, N, D] through the released blocks, computed plainly: what the ViT is held against."""
        heads, depth = self.about["num_heads"], self.about["depth"]
        for number in range(depth):
            part = {
                name.removeprefix(f"blocks.{number}."): value.to(x.dtype)
                for name, value in self.state.items()
                if name.startswith(f"blocks.{number}.")
            }

            def linear(y: Tensor, name: str, part: dict[str, Tensor] = part) -> Tensor:
                return y @ part[f"{name}.weight"].mT + part[f"{name}.bias"]

            def norm(y: Tensor, name: str, part: dict[str, Tensor] = part) -> Tensor:
                centred = y - y.mean(-1, keepdim=True)
                scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
                return scaled * part[f"{name}.weight"] + part[f"{name}.bias"]

            y = norm(x, "norm1")
            q, k, v = (rearrange(linear(y, f"attn.{one}"), "b n (h d) -> b h n d", h=heads) for one in "qkv")
            weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
            x = x + linear(rearrange(weights @ v, "b h n d -> b n (h d)"), "attn.proj")
            x = x + linear(F.gelu(linear(norm(x, "norm2"), "mlp.fc1")), "mlp.fc2")
        return x

    def _kernel(self, group: str) -> tuple[Tensor, Tensor]:
        """A group's convolution [D, C, P, P] at this patch, and its bias [D].

        The kernel is resampled by the pseudo-inverse of bicubic resizing (FlexiViT, Beyer et al., CVPR 2023).
        """
        prefix = f"space_time_embed.{group}.proj"
        weight, bias = self.state[f"{prefix}.weight"], self.state[f"{prefix}.bias"]
        old, new = weight.shape[-1], self.patch
        if old == new:
            return weight, bias
        basis = torch.eye(old * old).view(-1, 1, old, old)
        resize = F.interpolate(basis, (new, new), mode="bicubic", antialias=True).flatten(1)
        kernel = weight.flatten(2) @ torch.linalg.pinv(resize).mT
        return kernel.unflatten(2, (new, new)), bias

    def _encoding(self, what: str, group: str = "") -> Tensor:
        """What is added to the tokens of a group [N, D]: a quarter each for channels, date, month and place."""
        dim, count = self.about["embedding_size"] // 4, self.side**2
        found = torch.zeros(count, 4 * dim)
        if what == "place":
            steps = torch.arange(self.side) * (self.patch * self.metres / 10)  # in pixels of 10 m
            lines = _waves(steps, dim // 2)
            found[:, 3 * dim :] = torch.cat(
                (lines.repeat(self.side, 1), lines.repeat_interleave(self.side, 0)), 1
            )  # columns first
        else:
            found[:, :dim] = self.state["s_t_channel_embed"][_EMBEDDED.index(group)]
            found[:, dim : 2 * dim] = self.state["pos_embed"][0]
            found[:, 2 * dim : 3 * dim] = self.state["month_embed.weight"][self.month]
        return found


def _waves(steps: Tensor, dim: int) -> Tensor:
    """Sines, then cosines; frequencies fall to 10000 ** -1/4 only, as in the released code."""
    angles = steps[:, None] / 10_000 ** (torch.arange(dim // 2) / dim / 2)
    return torch.cat((angles.sin(), angles.cos()), 1)


@torch.inference_mode()
def block_difference(galileo: Galileo) -> float:
    """Largest difference between the ViT's blocks and the plain computation, on random tokens, in float64."""
    vit = galileo.vit().eval().double()
    drawn = torch.Generator().manual_seed(0)
    data = torch.randn(4, galileo.side**2, vit.spec.dim, generator=drawn, dtype=torch.float64)
    tokens = Tokens(data, (galileo.side, galileo.side))
    expected = galileo.blocks(tokens.data)
    for block in vit.blocks:
        tokens = block(tokens)
    return float((tokens.data - expected).abs().max())


@torch.inference_mode()
def likeness(galileo: Galileo, values: Tensor) -> dict[str, dict[str, float]]:
    """Of the ViT and Galileo itself on the same images: lengths of tokens, and how alike their features are.

    ``cosine`` is of features less their mean over all tokens, ``cka`` the linear centred kernel alignment (Kornblith et
    al., ICML 2019). ``sum`` is what the groups' sum, with the encoding once, would give.
    """
    own_tokens = galileo.own_tokens(values, ndvi=False)
    own = galileo.own(values, ndvi=False)
    vit = galileo.vit().eval()
    tokens = vit.stem(vit.inputs(values))
    said = torch.stack([galileo._encoding("channels", group) for group in GROUPS]).mean(0)  # noqa: SLF001  (this file)
    encoding = said + vit.stem.pos_embed
    summed = (tokens - encoding) * len(GROUPS) + encoding
    found = {"galileo": {"token_length": float(own_tokens.norm(dim=-1).mean())}}
    for name, one in {"mean": tokens, "sum": summed}.items():
        features = vit.norm(galileo.blocks(one))
        found[name] = {"token_length": float(one.norm(dim=-1).mean()), **_alike(features, own)}
    return {name: {key: round(value, 4) for key, value in row.items()} for name, row in found.items()}


def _alike(a: Tensor, b: Tensor) -> dict[str, float]:
    a, b = (one.flatten(0, -2) - one.flatten(0, -2).mean(0) for one in (a, b))
    shared = (a.mT @ b).norm() ** 2 / ((a.mT @ a).norm() * (b.mT @ b).norm())
    return {"cosine": float(F.cosine_similarity(a, b, dim=-1).mean()), "cka": float(shared)}
