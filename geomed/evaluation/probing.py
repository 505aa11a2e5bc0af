"""How well frozen features tell labelled things apart: neighbours and a linear probe, judged on other groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer  # noqa: TC002  (annotations stay readable at run time)
from torch.nn import functional as F

from geomed.evaluation.segmentation_scores import SegmentationScores
from geomed.pixels import IGNORE

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1024
"""Judged rows whose similarities to all fitted ones are in memory at once."""

STEPS = 500
"""Steps of L-BFGS at most."""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """Scores of two simple classifiers on frozen features, between 0 and 1."""

    knn: float
    """Macro F1 of the nearest neighbours."""

    knn_accuracy: float
    """Their balanced accuracy, the mean recall of the classes."""

    linear: float
    """Macro F1 of the linear probe."""

    linear_accuracy: float
    """Its balanced accuracy."""

    classes: tuple[int, ...]
    """The labels that are scored."""

    left_out: tuple[int, ...]
    """The labels that are not, since groups that are fitted and groups that are judged cannot both have them."""

    fitted: int
    """Rows that the classifiers learned from."""

    judged: int
    """Rows of other groups that they were judged on."""

    note: str = ""
    """What a reader must know."""


def probe(
    features: Float[np.ndarray, "n d"],
    labels: Integer[np.ndarray, " n"],
    groups: Integer[np.ndarray, " n"],
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
    judged: float = 0.3,
    seed: int = 0,
    limit: int = 20_000,
) -> Probed:
    """Fit two classifiers on some groups and judge them on others.

    *Nearest neighbours* vote with exp(cosine similarity / temperature) (Wu et al., CVPR 2018, section 3.4; with 20
    neighbours and 0.07 as in Caron et al., ICCV 2021, appendix). The *linear probe* is multinomial logistic regression
    on features standardised by the fitted rows, which minimises the summed cross-entropy + ||W||² / 2, the bias free
    (scikit-learn's default, C = 1). Nothing is tuned, so that no label is used twice and probes of one set can be
    compared while a network trains: which groups and rows are taken depends on labels, groups and seed only.

    Args:
        features: one row for each labelled thing.
        labels: classes from 0 on; rows of ``IGNORE`` are left out.
        groups: of each row what must not stand on both sides: its patient, block or scene.
        neighbours: how many vote; all where fewer are fitted.
        temperature: of their votes.
        judged: about what share of the groups of each class is judged; at least one of them is, and one is fitted.
        seed: of the division, and of the rows that are taken of too many.
        limit: rows that are fitted at most, and judged at most; of more, each class keeps its share.

    Raises:
        ValueError: an argument is out of range, lengths differ, features are not finite, or fewer than two groups or
            fewer than two classes that can be divided are left.
    """
    _refuse_settings(neighbours, temperature, judged)
    _refuse_rows(features, labels, groups)
    kept = np.flatnonzero(labels != IGNORE)
    division = _Division.draw(labels[kept], groups[kept], share=judged, draw=np.random.default_rng(seed))
    if limit < len(division.classes):
        raise ValueError(
            f"limit must leave a row for each of {len(division.classes)} classes, not {limit}; the default is 20000"
        )
    draw = np.random.default_rng([seed, 1])
    sides = []
    for rows in (division.fitted, division.judged):
        taken = kept[_thin(rows, labels[kept], limit, draw)]
        sides.append((features[taken], np.searchsorted(division.classes, labels[taken])))
    (known, classes), (asked, truth) = _ordered(*sides[0]), sides[1]
    by_neighbours = _vote(known, classes, asked, neighbours=min(neighbours, len(known)), temperature=temperature)
    by_line, settled = _regress(known, classes, asked)
    knn, linear = _scores(truth, by_neighbours, division.classes), _scores(truth, by_line, division.classes)
    notes = list(division.notes)
    if len(known) < neighbours:
        notes.append(f"only {len(known)} rows are fitted, and all of them vote, not {neighbours}")
    if not settled:
        notes.append(f"the linear probe had not settled after {STEPS} steps")
    return Probed(
        knn=knn[0],
        knn_accuracy=knn[1],
        linear=linear[0],
        linear_accuracy=linear[1],
        classes=tuple(division.classes.tolist()),
        left_out=division.left_out,
        fitted=len(known),
        judged=len(asked),
        note="; ".join(notes),
    )


@dataclass(frozen=True, kw_only=True)
class _Division:
    """Which rows are fitted and which judged."""

    fitted: Integer[np.ndarray, " f"]
    judged: Integer[np.ndarray, " j"]
    classes: Integer[np.ndarray, " k"]
    left_out: tuple[int, ...]
    notes: tuple[str, ...]

    @classmethod
    def draw(
        cls,
        labels: Integer[np.ndarray, " n"],
        groups: Integer[np.ndarray, " n"],
        *,
        share: float,
        draw: np.random.Generator,
    ) -> _Division:
        """Divide whole groups so that every class that two groups have stands on both sides, if that can be."""
        classes, of_class = np.unique(labels, return_inverse=True)
        names, of_group = np.unique(groups, return_inverse=True)
        if len(names) < 2:
            raise ValueError(
                f"a probe is judged on other groups than it is fitted on and needs two, there are {len(names)} with "
                "labels; give more patients, blocks or scenes"
            )
        if len(classes) < 2:
            raise ValueError(
                f"a probe tells classes apart and needs two, the labels are {classes.tolist()}; label more"
            )
        holds = np.zeros((len(names), len(classes)), dtype=bool)
        holds[of_group, of_class] = True
        lonely = holds.sum(0) < 2
        side = _side(holds & ~lonely, share, draw)
        torn = ~lonely & ~(holds[side].any(0) & holds[~side].any(0))
        good = ~lonely & ~torn
        if good.sum() < 2:
            raise ValueError(
                f"a probe needs two classes that are fitted in some groups and judged in others, of {len(classes)} "
                f"classes there {'is' if good.sum() == 1 else 'are'} {int(good.sum())}; {int(lonely.sum())} are in one "
                "group only: label more patients, blocks or scenes"
            )
        notes = []
        if lonely.any():
            notes.append(f"left out, as all of their rows are of one group: classes {classes[lonely].tolist()}")
        if torn.any():
            notes.append(f"left out, as no division gives them to both sides: classes {classes[torn].tolist()}")
        rows = good[of_class]
        return cls(
            fitted=np.flatnonzero(rows & ~side[of_group]),
            judged=np.flatnonzero(rows & side[of_group]),
            classes=classes[good],
            left_out=tuple(classes[~good].tolist()),
            notes=tuple(notes),
        )


def _side(holds: Bool[np.ndarray, "g k"], share: float, draw: np.random.Generator) -> Bool[np.ndarray, " g"]:
    """Which groups are judged: class by class, the rarest first, as in Sechidis et al., ECML 2011, section 3.2."""
    judged = np.zeros(len(holds), dtype=bool)
    free = np.ones(len(holds), dtype=bool)
    for column in np.argsort(holds.sum(0), kind="stable"):
        members = np.flatnonzero(holds[:, column])
        if not len(members):
            continue
        wanted = int(np.clip(round(share * len(members)), 1, len(members) - 1))
        open_ones = draw.permutation(members[free[members]])
        judged[open_ones[: max(wanted - int(judged[members].sum()), 0)]] = True
        free[members] = False
    # Groups of rare classes may have taken all those of another class to one side: single groups change sides as long
    # as that helps. It need not: of three groups, each of two of three classes, two are on one side with a class whole.
    totals = holds.sum(0)
    counted = totals > 0

    def lacking(on_judged: Integer[np.ndarray, "*g k"]) -> Integer[np.ndarray, "*g"]:
        lost: np.ndarray = (counted & ((on_judged == 0) | (on_judged == totals))).sum(-1)
        return lost

    while (now := lacking(holds[judged].sum(0))) > 0:
        after = lacking(holds[judged].sum(0) + np.where(judged, -1, 1)[:, None] * holds)
        best = int(after.argmin())
        if after[best] >= now:
            break
        judged[best] = ~judged[best]
    return judged


def _thin(
    rows: Integer[np.ndarray, " m"], labels: Integer[np.ndarray, " n"], limit: int, draw: np.random.Generator
) -> Integer[np.ndarray, " r"]:
    """At most ``limit`` of the rows: of each class one, and of the rest its share."""
    if len(rows) <= limit:
        return rows
    classes, counts = np.unique(labels[rows], return_counts=True)
    quota = 1 + (limit - len(classes)) * (counts - 1) // (len(rows) - len(classes))
    picked = [
        draw.choice(rows[labels[rows] == name], size, replace=False) for name, size in zip(classes, quota, strict=True)
    ]
    return np.sort(np.concatenate(picked))


def _ordered(
    features: Float[np.ndarray, "n d"], classes: Integer[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "n d"], Integer[np.ndarray, " n"]]:
    """The rows in an order of their own: which of equally near ones vote must not depend on how they were given."""
    rows = np.ascontiguousarray(features)
    order = np.argsort(rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel(), kind="stable")
    order = order[np.argsort(classes[order], kind="stable")]
    return rows[order], classes[order]


def _vote(
    known: Float[np.ndarray, "n d"],
    classes: Integer[np.ndarray, " n"],
    asked: Float[np.ndarray, "m d"],
    *,
    neighbours: int,
    temperature: float,
) -> Integer[np.ndarray, " m"]:
    bank = F.normalize(torch.from_numpy(known).float(), dim=1)
    names = torch.from_numpy(classes)
    count = int(classes.max()) + 1
    answers = []
    for some in torch.from_numpy(np.ascontiguousarray(asked)).float().split(CHUNK):
        near, at = (F.normalize(some, dim=1) @ bank.T).topk(neighbours, dim=1)
        # relative to the nearest one, as exp would overflow at a low temperature; no answer changes
        weights = ((near - near[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(some), count).scatter_add_(1, names[at], weights)
        answers.append(votes.argmax(1))
    decided: np.ndarray = torch.cat(answers).numpy()
    return decided


def _regress(
    known: Float[np.ndarray, "n d"], classes: Integer[np.ndarray, " n"], asked: Float[np.ndarray, "m d"]
) -> tuple[Integer[np.ndarray, " m"], bool]:
    """What logistic regression answers, and whether it had settled."""
    rows = torch.from_numpy(known).double()
    mean, scale = rows.mean(0), rows.std(0, correction=0)
    # a channel that changes by rounding only says nothing, and must not be blown up to a unit deviation
    scale = torch.where(scale > np.finfo(known.dtype).eps * mean.abs(), scale, torch.inf)
    weight, bias, settled = logistic_regression(
        (rows - mean) / scale, torch.from_numpy(classes), int(classes.max()) + 1
    )
    logits = ((torch.from_numpy(asked).double() - mean) / scale) @ weight + bias
    decided: np.ndarray = logits.argmax(1).numpy()
    return decided, settled


def logistic_regression(
    rows: Float[Tensor, "n d"], classes: Integer[Tensor, " n"], count: int, *, tolerance: float = 1e-5
) -> tuple[Float[Tensor, "d k"], Float[Tensor, " k"], bool]:
    """Multinomial logistic regression that minimises the summed cross-entropy + ||W||² / 2, by L-BFGS.

    Args:
        rows: standardised features, float64.
        classes: 0 to ``count`` - 1.
        count: K.
        tolerance: the largest slope of the mean loss at which it has settled.

    Returns:
        Weights, biases, and whether it has settled within ``STEPS`` steps.
    """
    weight = rows.new_zeros(rows.shape[1], count, requires_grad=True)
    bias = rows.new_zeros(count, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=STEPS,
        max_eval=2 * STEPS,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        with torch.enable_grad():
            value = F.cross_entropy(rows @ weight + bias, classes) + weight.square().sum() / (2 * len(rows))
            value.backward()
        return value

    solver.step(loss)
    loss()
    slopes = [parameter.grad for parameter in (weight, bias)]
    settled = all(slope is not None and float(slope.abs().max()) <= tolerance for slope in slopes)
    return weight.detach(), bias.detach(), settled


def _scores(
    truth: Integer[np.ndarray, " m"], answers: Integer[np.ndarray, " m"], classes: Integer[np.ndarray, " k"]
) -> tuple[float, float]:
    """Macro F1 and balanced accuracy; every class is in the truth, so that neither lacks one."""
    counts = np.bincount(truth * len(classes) + answers, minlength=len(classes) ** 2).reshape(len(classes), -1)
    scores = SegmentationScores.from_confusion(counts, tuple(map(str, classes)))
    return scores.macro_f1, float(np.mean(scores.recall))


def _refuse_settings(neighbours: int, temperature: float, judged: float) -> None:
    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, not {neighbours}; 20 is usual")
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature must be greater than 0, not {temperature}; 0.07 is usual")
    if not 0 < judged < 1:
        raise ValueError(f"judged must be a share between 0 and 1, not {judged}; 0.3 is usual")


def _refuse_rows(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> None:
    if features.ndim != 2 or not features.shape[1] or not np.issubdtype(features.dtype, np.floating):
        raise ValueError(
            f"features must be numbers [n, d], not {features.dtype} {features.shape}; give one vector for each row"
        )
    for name, given in (("labels", labels), ("groups", groups)):
        if given.shape != features.shape[:1] or not np.issubdtype(given.dtype, np.integer):
            raise ValueError(
                f"{name} must be whole numbers [{len(features)}], one for each row of features, not {given.dtype} "
                f"{given.shape}; give features, labels and groups of the same rows"
            )
    if (labels < 0).any():
        raise ValueError(f"labels must be 0 or greater, not {labels.min()}; rows without a class are {IGNORE}")
    finite = np.isfinite(features).all(1)
    if not finite.all():
        raise ValueError(
            f"features must be finite, {int((~finite).sum())} of {len(features)} rows are not; look for what became "
            "NaN or infinite in the network or in its input"
        )
