import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    jaccard_score,
    precision_recall_fscore_support,
)
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index

from geomed.evaluation.segmentation_scores import SegmentationScores, bootstrap_macro_f1

CLASSES = ("maize", "wheat", "barley", "grass", "water")


@pytest.fixture
def labels():
    draw = np.random.default_rng(3)
    truth = draw.integers(0, 4, 2000)  # nothing is water in the truth
    prediction = np.where(draw.random(2000) < 0.6, truth, draw.integers(0, 5, 2000))
    prediction[prediction == 2] = 0  # barley is never predicted
    return truth, prediction


def test_equals_scikit_learn(labels):
    matrix = confusion_matrix(*labels, labels=range(5))
    scores = SegmentationScores.from_confusion(matrix, CLASSES)
    precision, recall, f1, support = precision_recall_fscore_support(*labels, labels=range(5), zero_division=np.nan)
    np.testing.assert_allclose(scores.precision, precision, atol=1e-12)
    np.testing.assert_allclose(scores.recall, recall, atol=1e-12)
    np.testing.assert_allclose(scores.f1, f1, atol=1e-12)
    np.testing.assert_allclose(scores.iou, jaccard_score(*labels, labels=range(5), average=None), atol=1e-12)
    assert scores.support == tuple(support)
    assert scores.macro_f1 == pytest.approx(np.mean(f1), abs=1e-12)
    assert scores.accuracy == pytest.approx(accuracy_score(*labels), abs=1e-12)
    assert scores.kappa == pytest.approx(cohen_kappa_score(*labels), abs=1e-12)


def test_macro_means_equal_torchmetrics_which_leaves_out_absent_classes(labels):
    truth, prediction = (torch.from_numpy(part) for part in labels)
    matrix = torch.from_numpy(confusion_matrix(*labels, labels=range(7)))  # two classes occur nowhere
    scores = SegmentationScores.from_confusion(matrix, (*CLASSES, "rye", "oats"))
    assert scores.macro_f1 == pytest.approx(multiclass_f1_score(prediction, truth, 7, average="macro").item(), abs=1e-6)
    assert scores.macro_iou == pytest.approx(multiclass_jaccard_index(prediction, truth, 7).item(), abs=1e-6)
    assert math.isnan(scores.f1[5])
    assert math.isnan(scores.iou[6])


def test_one_pixel_has_no_kappa_and_prints():
    scores = SegmentationScores.from_confusion(np.array([[1, 0], [0, 0]]), ("maize", "a class of a long name"))
    assert scores.accuracy == scores.macro_f1 == 1
    assert math.isnan(scores.kappa)
    values = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert values["kappa"] is None
    assert values["per_class"]["maize"] == {"precision": 1, "recall": 1, "f1": 1, "iou": 1, "support": 1}
    lines = scores.table().splitlines()
    assert lines[1].split() == ["maize", "100.0", "100.0", "100.0", "100.0", "1"]
    assert lines[2].split()[-5:] == ["-", "-", "-", "-", "0"]
    assert len({len(line) for line in lines[:5]}) == 1  # every column ends where its heading does


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        (np.zeros((2, 2), dtype=int), "at least one pixel"),
        (np.ones((2, 3), dtype=int), r"must be \[K, K\]"),
        (np.ones((3, 3), dtype=int), "3 rows, 2 classes"),
        (np.array([[1, -1], [0, 1]]), "counts of pixels, not -1"),
        (np.array([[0.5, 0.5], [0.0, 1.0]]), "before normalising"),
        (np.array([[np.nan, 0.0], [0.0, 1.0]]), "counts of pixels, not nan"),
    ],
)
def test_refuses_what_is_no_count(matrix, said):
    with pytest.raises(ValueError, match=said):
        SegmentationScores.from_confusion(matrix, ("maize", "wheat"))


def test_interval_holds_the_score_and_repeats():
    draw = np.random.default_rng(0)
    fields = [np.array([[9, 1], [2, 8]]) * draw.integers(1, 9) + draw.integers(0, 4, (2, 2)) for _ in range(40)]
    low, high = bootstrap_macro_f1(fields, n=300, seed=1)
    score = SegmentationScores.from_confusion(sum(fields), ("maize", "wheat")).macro_f1
    assert low < score < high
    assert (low, high) == bootstrap_macro_f1([torch.from_numpy(field) for field in fields], n=300, seed=1)
    assert (low, high) == bootstrap_macro_f1([*fields, np.zeros((2, 2), dtype=int)], n=300, seed=1)
    assert (low, high) != bootstrap_macro_f1(fields, n=300, seed=2)


def test_interval_of_two_fields_is_one_or_the_other_or_their_mean():
    good, bad = np.array([[4, 0], [0, 4]]), np.array([[0, 4], [4, 0]])
    assert bootstrap_macro_f1([good, bad], n=500, seed=0) == (0, 1)


@pytest.mark.parametrize("matrices", [[], [np.eye(2, dtype=int)], [np.eye(2, dtype=int), np.zeros((2, 2), dtype=int)]])
def test_interval_needs_two_fields(matrices):
    with pytest.raises(ValueError, match="at least two"):
        bootstrap_macro_f1(matrices, seed=0)
    with pytest.raises(ValueError, match="same classes"):
        bootstrap_macro_f1([np.eye(2, dtype=int), np.eye(3, dtype=int)], seed=0)
