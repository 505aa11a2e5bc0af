"""DINOv2: a student agrees with the average of itself on crops of an image, and on patches that it does not see."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.backbones.backbone import pad_to_patches
from geomed.backbones.vit import Hidden, ViT
from geomed.pixels import Pixels
from geomed.tasks.block_masks import BlockMasks
from geomed.tasks.centring import Centring, RunningMean
from geomed.tasks.objective import LearningGroup, Objective, Outcome
from geomed.tasks.projection_head import ProjectionHead, Prototypes
from geomed.tasks.self_distillation import image_loss, patch_loss, patch_weights
from geomed.tasks.teacher import Average, Teacher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geomed.tasks.objective import Views
    from geomed.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class Averaging:
    """How the teacher follows the student."""

    average: Average = "factors"
    """What it averages of low-rank updates."""

    first: float = 0.992
    """Share of the teacher that the first step leaves as it was."""

    last: float = 1.0
    """The same at the end; between them it rises along half a cosine."""

    def __post_init__(self) -> None:
        """Refuse momenta that mean nothing."""
        if not 0 <= self.first <= self.last <= 1:
            raise ValueError(
                f"the momentum rises between 0 and 1, not from {self.first} to {self.last}; 0.992 to 1 is usual"
            )

    def momentum(self, done: float) -> float:
        """At this share of the steps."""
        return self.last - (self.last - self.first) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True, kw_only=True)
class Temperatures:
    """What logits are divided by before a softmax."""

    student: float = 0.1
    """The student's."""

    first: float = 0.04
    """The teacher's at the start."""

    last: float = 0.07
    """The teacher's after the warm-up."""

    warmup: float = 0.3
    """Share of all steps in which it rises linearly from first to last."""

    def __post_init__(self) -> None:
        """Refuse temperatures that mean nothing."""
        if min(self.student, self.first, self.last) <= 0 or not 0 <= self.warmup <= 1:
            raise ValueError(
                "temperatures must be positive and warmup a share of the steps, "
                f"not {self.student}, {self.first}, {self.last} and {self.warmup}; correct them"
            )

    def teacher(self, done: float) -> float:
        """At this share of the steps."""
        risen = min(done / self.warmup, 1.0) if self.warmup else 1.0
        return self.first + (self.last - self.first) * risen


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """What each of the three losses counts."""

    dino: float = 1.0
    """Crops of one image get the same prototypes (Caron et al., ICCV 2021)."""

    ibot: float = 1.0
    """Hidden patches get those that the teacher sees there (Zhou et al., ICLR 2022)."""

    koleo: float = 0.1
    """Images keep away from their nearest neighbour (Sablayrolles et al., ICLR 2019)."""

    def __post_init__(self) -> None:
        """Refuse weights of which nothing is learned."""
        if min(self.dino, self.ibot, self.koleo) < 0 or self.dino + self.ibot == 0:
            raise ValueError(
                "weights must not be negative, and dino or ibot positive, "
                f"not {self.dino}, {self.ibot} and {self.koleo}; correct them"
            )


class DINOv2(Objective):
    """Self-distillation (Oquab et al., TMLR 2024, section 4): DINO, iBOT and KoLeo on crops of unlabelled images.

    The teacher sees the global crops whole. The student sees them with hidden patches, and local crops. Heads start
    from nothing, since no published file holds them, and so does the mask token, which timm's files lack. The vector of
    an image is its class token; of a network without one it is the mean of the patch tokens. A patch without any valid
    pixel is never hidden, so that it counts in no iBOT loss. KoLeo is summed over the global crops, as published, each
    crop's neighbours being sought in its own process.
    """

    shardable = False  # the teacher runs the student's own modules with other tensors, of which FSDP keeps only parts

    def __init__(
        self,
        *,
        prototypes: Prototypes = Prototypes(),  # noqa: B008  (frozen)
        averaging: Averaging = Averaging(),
        temperatures: Temperatures = Temperatures(),
        weights: LossWeights = LossWeights(),
        masks: BlockMasks = BlockMasks(),  # noqa: B008  (likewise)
        centring: Centring = RunningMean(),  # noqa: B008  (it has no state: copies of it are bound)
        head_rate: float = 1.0,
        last_layer_frozen: float = 0.03,
    ) -> None:
        """Choose the settings; heads and teacher are made by `bind`.

        Args:
            prototypes: how many, and the size of the head.
            averaging: how the teacher follows.
            temperatures: of student and teacher.
            weights: of the three losses.
            masks: which patches are hidden from the student.
            centring: what keeps the teacher from giving all images the same prototype. ``Sinkhorn`` wants batches that
                are large on each step, gradients accumulated or not.
            head_rate: learning rate of the heads and the mask token over that of the backbone.
            last_layer_frozen: share of the steps before which the prototypes stand still.

        Raises:
            ValueError: a rate or a share that means nothing.
        """
        super().__init__()
        if head_rate <= 0 or not 0 <= last_layer_frozen < 1:
            raise ValueError(
                f"head_rate must be positive and last_layer_frozen in [0, 1), not {head_rate} and {last_layer_frozen}"
            )
        self.prototypes, self.averaging, self.temperatures = prototypes, averaging, temperatures
        self.weights, self.masks, self.head_rate = weights, masks, head_rate
        self.last_layer_frozen = last_layer_frozen
        self.image_centring, self.patch_centring = copy.deepcopy(centring), copy.deepcopy(centring)
        self.heads: Heads | None = None

    def bind(self, backbone: ViT) -> None:
        """Make heads and teacher.

        Raises:
            ValueError: the backbone hides no patches, or nothing trains in it.
        """
        if not isinstance(backbone, ViT):
            raise ValueError(  # noqa: TRY004  (the project raises ValueError for every broken rule)
                f"DINOv2 hides patches of single images, which a {type(backbone).__name__} cannot; take a ViT"
            )
        self.heads = Heads(backbone.spec.dim, self.prototypes)
        self.teacher = Teacher(backbone, average=self.averaging.average)
        self.heads_teacher = Teacher(self.heads)
        self.mask_token = nn.Parameter(torch.zeros(backbone.spec.dim))
        self.image_centring.bind(self.prototypes.count)
        self.patch_centring.bind(self.prototypes.count)

    def forward(self, backbone: ViT, views: Views, *, generator: torch.Generator, done: float) -> Outcome:
        """The three losses of a batch.

        Raises:
            ValueError: the objective is not bound, there are fewer than two global crops or two images, crops of one
                kind have several sizes, one is smaller than two patches, or no pixel is valid.
        """
        heads = self._bound()
        crops, images = self._counts(backbone, views)
        wide = _together(views.wide)
        useful = _useful(wide, backbone.spec.patch)
        mask = self.masks(len(useful), (useful.shape[1], useful.shape[2]), generator).to(useful.device) & useful
        hidden = mask.flatten().nonzero()[:, 0]  # before the networks run, for it waits for the device
        if not len(hidden) and not bool(useful.any()):
            raise ValueError("no pixel of any global crop is valid; leave out windows without data")
        weights = patch_weights(mask, hidden)
        given = self._given(backbone, wide, hidden, done)

        (partly,) = backbone(wide, hidden=Hidden(mask=mask, token=self.mask_token))
        global_vectors = vectors = _image_vectors(backbone, partly)
        if views.small:
            (small,) = backbone(_together(views.small))
            vectors = torch.cat((vectors, _image_vectors(backbone, small)))
        image_logits, patch_logits = heads(vectors, partly.patches().flatten(0, 1)[hidden])
        logits = image_logits.unflatten(0, (-1, images)).unbind()
        temperature = self.temperatures.student
        dino = image_loss(logits[:crops], logits[crops:], given.images.unflatten(0, (crops, images)), temperature)
        ibot = patch_loss(patch_logits, given.patches, weights, temperature)
        loss = self.weights.dino * dino + self.weights.ibot * ibot
        figures = {"dino": dino.detach(), "ibot": ibot.detach()}
        if self.weights.koleo:
            koleo = _koleo(global_vectors.unflatten(0, (crops, images)))
            loss = loss + self.weights.koleo * koleo
            figures["koleo"] = koleo.detach()
        figures["teacher_temperature"] = dino.new_full((), self.temperatures.teacher(done))
        figures["momentum"] = dino.new_full((), self.averaging.momentum(done))
        return Outcome(loss=loss, features=given.features, figures=figures, entropy=given.entropy)

    def _given(self, backbone: ViT, wide: Pixels, hidden: Int[Tensor, " m"], done: float) -> Given:
        """Let the teacher see the global crops whole; its logits, which are large, end here."""
        temperature = self.temperatures.teacher(done)
        seen = self.teacher(backbone, wide)[0]
        features = _image_vectors(backbone, seen)
        image_logits, patch_logits = self.heads_teacher(self._bound(), features, seen.patches().flatten(0, 1)[hidden])
        images = self.image_centring(image_logits, temperature)
        patches = self.patch_centring(patch_logits, temperature)
        return Given(features=features.float(), images=images, patches=patches, entropy=_entropy(images))

    def groups(self) -> tuple[LearningGroup, ...]:
        """Heads with the mask token, and the prototypes, which begin later."""
        if self.heads is None:
            return ()
        parts = [head for head in (self.heads.image, self.heads.patch) if head is not None]
        last = [parameter for head in parts for parameter in head.last.parameters()]
        rest = [parameter for head in parts for parameter in head.mlp.parameters()]
        return (
            LearningGroup(name="heads", parameters=[*rest, self.mask_token], rate=self.head_rate),
            LearningGroup(name="prototypes", parameters=last, rate=self.head_rate, frozen_until=self.last_layer_frozen),
        )

    def after_step(self, backbone: ViT, done: float) -> None:
        """The teacher follows, backbone and heads."""
        heads = self._bound()
        momentum = self.averaging.momentum(done)
        self.teacher.update(backbone, momentum)
        self.heads_teacher.update(heads, momentum)

    def tokens(self, backbone: ViT, pixels: Pixels) -> Tokens:
        """The teacher's."""
        self._bound()
        return self.teacher(backbone, pixels)[0]

    def result(self, backbone: ViT) -> dict[str, Tensor]:
        """The teacher's averages."""
        self._bound()
        return self.teacher.tensors(backbone)

    def _bound(self) -> Heads:
        if self.heads is None:
            raise ValueError("this DINOv2 has no heads and no teacher yet; bind it to a backbone first")
        return self.heads

    def _counts(self, backbone: ViT, views: Views) -> tuple[int, int]:
        """Global crops and images, where they are enough."""
        crops = len(views.wide)
        if crops < 2:
            raise ValueError(f"DINOv2 compares global crops with each other: give two or more, not {crops}")
        for kind in (views.wide, views.small):
            shapes = {tuple(pixels.values.shape) for pixels in kind}
            if len(shapes) > 1:
                raise ValueError(f"crops of one kind run together, so give them one size, not {sorted(shapes)}")
        images = len(views.wide[0].values)
        if any(len(pixels.values) != images for pixels in views.small):
            raise ValueError(f"local crops must be of the same {images} images as the global ones; give all of them")
        if images < 2 and self.weights.koleo:
            raise ValueError(
                "KoLeo keeps images away from their nearest neighbour, and in a batch of one there is none; "
                "give larger batches to each process, or the weight koleo 0"
            )
        side = min(min(pixels.size) for pixels in (*views.wide, *views.small))
        if side < 2 * backbone.spec.patch:
            raise ValueError(
                f"a crop must be two patches of {backbone.spec.patch} pixels wide and high, not {side} pixels; "
                "take larger crops"
            )
        return crops, images


class Given(NamedTuple):
    """What the teacher gives a student to learn."""

    features: Float[Tensor, "n d"]
    """Vectors of the global crops."""

    images: Float[Tensor, "n k"]
    """To which prototypes each crop belongs."""

    patches: Float[Tensor, "m k"]
    """And each hidden patch."""

    entropy: Float[Tensor, ""]
    """Of the mean over the crops."""


class Heads(nn.Module):
    """The head of image vectors and that of patches, which may be one."""

    def __init__(self, dim: int, prototypes: Prototypes) -> None:
        """``dim`` is the width of a token."""
        super().__init__()
        self.image = ProjectionHead(dim, prototypes)
        self.patch = ProjectionHead(dim, prototypes) if prototypes.separate else None

    def forward(
        self, vectors: Float[Tensor, "n d"], patches: Float[Tensor, "m d"]
    ) -> tuple[Float[Tensor, "n k"], Float[Tensor, "m k"]]:
        """Logits of both."""
        if self.patch is not None:
            return self.image(vectors), self.patch(patches)
        images, others = self.image(torch.cat((vectors, patches))).split((len(vectors), len(patches)))
        return images, others


def _together(crops: Sequence[Pixels]) -> Pixels:
    """One batch of all crops, crop by crop."""
    values = torch.cat([pixels.values for pixels in crops])
    if all(pixels.valid is None for pixels in crops):
        return Pixels(values=values)
    everywhere = [torch.ones_like(pixels.values[:, 0], dtype=torch.bool) for pixels in crops]
    valid = [full if pixels.valid is None else pixels.valid for pixels, full in zip(crops, everywhere, strict=True)]
    return Pixels(values=values, valid=torch.cat(valid))


def _useful(pixels: Pixels, patch: int) -> Bool[Tensor, "n h w"]:
    """The patches of which at least one pixel is valid."""
    valid = torch.ones_like(pixels.values[:, 0]) if pixels.valid is None else pixels.valid.float()
    return F.max_pool2d(pad_to_patches(valid[:, None], patch), patch)[:, 0] > 0


def _image_vectors(backbone: ViT, tokens: Tokens) -> Float[Tensor, "n d"]:
    return tokens.data[:, 0] if backbone.spec.class_token else tokens.patches().mean(1)


def _koleo(vectors: Float[Tensor, "g b d"]) -> Float[Tensor, ""]:
    """Of each global crop, added up: crops of one image are not to keep away from each other."""
    from lightly.loss import KoLeoLoss  # late: lightly takes seconds to import

    koleo = KoLeoLoss()
    with torch.autocast(vectors.device.type, enabled=False):  # products in bfloat16 find the wrong neighbours
        return torch.stack([koleo(crop) for crop in vectors.float()]).sum()


def _entropy(assignments: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Of their mean, over log K: 0 where all get the same prototype. After Sinkhorn they never do."""
    return torch.special.entr(assignments.mean(0)).sum() / math.log(assignments.shape[1])
