"""Scores of a classification against scikit-learn and torchmetrics, and what is refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import metrics
from torchmetrics.functional import classification as tm

from geomed.evaluation.agreement import F1, Accuracy, BalancedAccuracy, Kappa, confusion_matrix
from geomed.evaluation.binning import EqualMass, EqualWidth
from geomed.evaluation.calibration import (
    CalibrationError,
    ClasswiseCalibrationError,
    DebiasedCalibrationError,
    MaximumCalibrationError,
    brier_parts,
    reliability,
)
from geomed.evaluation.multi_label import MultiLabel
from geomed.evaluation.proper_scores import Brier, LogLoss
from geomed.evaluation.roc import AUROC, AveragePrecision, Curve, midranks
from geomed.evaluation.single_label import SingleLabel

EXACT = {"rel": 0, "abs": 1e-12}


def single(truth, probabilities, *, classes=None, patients=None, part="test", ordered=False):
    count = probabilities.shape[1]
    return SingleLabel(
        classes=classes or tuple("abcdefghij"[:count]),
        truth=np.asarray(truth),
        probabilities=probabilities,
        cases=tuple(f"case{at}" for at in range(len(truth))),
        patients=patients,
        part=part,
        ordered=ordered,
    )


def labels(truth, probabilities, **fields):
    return MultiLabel(
        classes=tuple("abcdefghij"[: probabilities.shape[1]]),
        truth=truth,
        probabilities=probabilities,
        cases=tuple(f"case{at}" for at in range(len(truth))),
        patients=None,
        part="test",
        **fields,
    )


def drawn(count, classes, *, votes=None, seed=0):
    """Truths and probabilities that know something of them; few votes make many ties."""
    draw = np.random.default_rng(seed)
    truth = np.concatenate((np.arange(classes), draw.integers(0, classes, count - classes)))
    logits = draw.normal(size=(count, classes)) * 1.5
    logits[np.arange(count), truth] += 1
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if votes is not None:
        probabilities = draw.multinomial(votes, probabilities) / votes
    return truth, probabilities


@pytest.mark.parametrize("votes", [None, 10])
def test_binary_scores_equal_scikit_learn(votes):
    truth, probabilities = drawn(500, 2, votes=votes)
    said = single(truth, probabilities)
    p, decided = probabilities[:, 1], probabilities.argmax(1)
    assert AUROC().of(said) == pytest.approx(metrics.roc_auc_score(truth, p), **EXACT)
    assert AveragePrecision().of(said) == pytest.approx(metrics.average_precision_score(truth, p), **EXACT)
    assert Accuracy().of(said) == pytest.approx(metrics.accuracy_score(truth, decided), **EXACT)
    assert BalancedAccuracy().of(said) == pytest.approx(metrics.balanced_accuracy_score(truth, decided), **EXACT)
    assert F1().of(said) == pytest.approx(metrics.f1_score(truth, decided), **EXACT)
    assert F1(classes=("a", "b")).of(said) == pytest.approx(metrics.f1_score(truth, decided, average="macro"), **EXACT)
    assert Kappa().of(said) == pytest.approx(metrics.cohen_kappa_score(truth, decided), **EXACT)
    assert Brier().of(said) == pytest.approx(metrics.brier_score_loss(truth, p), **EXACT)
    if votes is None:  # of a 0 scikit-learn takes 2.2e-16, the spacing of float64 at 1; here it is 2.2e-308
        assert LogLoss().of(said) == pytest.approx(metrics.log_loss(truth, p), **EXACT)


@pytest.mark.parametrize("votes", [None, 10])
def test_multi_class_scores_equal_scikit_learn(votes):
    truth, probabilities = drawn(600, 5, votes=votes)
    said = single(truth, probabilities, ordered=True)
    decided, one_hot = probabilities.argmax(1), np.eye(5)[truth]
    assert AUROC().of(said) == pytest.approx(
        metrics.roc_auc_score(truth, probabilities, multi_class="ovr", average="macro"), **EXACT
    )
    assert AveragePrecision().of(said) == pytest.approx(
        metrics.average_precision_score(one_hot, probabilities, average="macro"), **EXACT
    )
    for at, name in enumerate(said.classes):
        expected = metrics.roc_auc_score(one_hot[:, at], probabilities[:, at])
        assert AUROC(classes=(name,)).of(said) == pytest.approx(expected, **EXACT)
        assert AUROC().of(said.one_against_rest(name)) == pytest.approx(expected, **EXACT)
        assert F1(classes=(name,)).of(said) == pytest.approx(
            metrics.f1_score(truth, decided, average=None)[at], **EXACT
        )
    assert Accuracy().of(said) == pytest.approx(metrics.accuracy_score(truth, decided), **EXACT)
    assert BalancedAccuracy().of(said) == pytest.approx(metrics.balanced_accuracy_score(truth, decided), **EXACT)
    assert F1().of(said) == pytest.approx(metrics.f1_score(truth, decided, average="macro"), **EXACT)
    assert Kappa().of(said) == pytest.approx(metrics.cohen_kappa_score(truth, decided), **EXACT)
    assert Kappa(quadratic=True).of(said) == pytest.approx(
        metrics.cohen_kappa_score(truth, decided, weights="quadratic"), **EXACT
    )
    assert Brier().of(said) == pytest.approx(metrics.brier_score_loss(truth, probabilities), **EXACT)
    assert (confusion_matrix(said) == metrics.confusion_matrix(truth, decided)).all()


def test_multi_label_scores_equal_scikit_learn():
    draw = np.random.default_rng(1)
    truth = draw.integers(0, 2, (300, 4))
    probabilities = np.round(np.clip(0.3 * truth + draw.random((300, 4)) * 0.7, 0, 1), 2)
    said = labels(truth, probabilities)
    decided = (probabilities >= 0.5).astype(int)
    assert AUROC().of(said) == pytest.approx(metrics.roc_auc_score(truth, probabilities), **EXACT)
    assert AveragePrecision().of(said) == pytest.approx(metrics.average_precision_score(truth, probabilities), **EXACT)
    assert F1().of(said) == pytest.approx(metrics.f1_score(truth, decided, average="macro"), **EXACT)
    assert Accuracy().of(said) == pytest.approx(1 - metrics.hamming_loss(truth, decided), **EXACT)
    each = [metrics.balanced_accuracy_score(truth[:, at], decided[:, at]) for at in range(4)]
    assert BalancedAccuracy().of(said) == pytest.approx(np.mean(each), **EXACT)
    each = [metrics.brier_score_loss(truth[:, at], probabilities[:, at]) for at in range(4)]
    assert Brier().of(said) == pytest.approx(np.mean(each), **EXACT)
    asked = said.one_against_rest("c")
    assert AUROC().of(asked) == pytest.approx(metrics.roc_auc_score(truth[:, 2], probabilities[:, 2]), **EXACT)


def test_scores_equal_torchmetrics():
    truth, probabilities = drawn(700, 4, seed=2)
    said, y, p = single(truth, probabilities, ordered=True), torch.from_numpy(truth), torch.from_numpy(probabilities)
    # torchmetrics computes rates and bins in float32, whatever the scores are: it cannot agree better than to 1e-6
    assert AUROC().of(said) == pytest.approx(tm.multiclass_auroc(p, y, 4).item(), abs=1e-6)
    assert AveragePrecision().of(said) == pytest.approx(tm.multiclass_average_precision(p, y, 4).item(), abs=1e-6)
    assert Kappa(quadratic=True).of(said) == pytest.approx(
        tm.multiclass_cohen_kappa(p, y, 4, weights="quadratic").item(), abs=1e-6
    )
    for bins in (7, 15):
        for norm, measure in (("l1", CalibrationError), ("max", MaximumCalibrationError)):
            expected = tm.multiclass_calibration_error(p, y, 4, n_bins=bins, norm=norm).item()
            assert measure(binning=EqualWidth(bins=bins)).of(said) == pytest.approx(expected, abs=1e-6)
    asked = said.one_against_rest("c")
    expected = tm.binary_calibration_error(p[:, 2].contiguous(), (y == 2).long(), n_bins=10).item()
    assert CalibrationError(binning=EqualWidth(bins=10)).of(asked) == pytest.approx(expected, abs=1e-6)
    each = [tm.binary_calibration_error(p[:, at].contiguous(), (y == at).long(), n_bins=15).item() for at in range(4)]
    assert ClasswiseCalibrationError().of(said) == pytest.approx(np.mean(each), abs=1e-6)


def test_certain_probabilities_belong_to_the_last_bin_where_torchmetrics_gives_them_one_more():
    said = single([1, 0, 0], np.array([[0.0, 1.0], [0.05, 0.95], [0.9, 0.1]]))
    theirs = tm.binary_calibration_error(torch.tensor([1.0, 0.95, 0.1]), torch.tensor([1, 0, 0]), n_bins=10)
    assert theirs.item() == pytest.approx((0 + 0.95 + 0.1) / 3)
    assert CalibrationError(binning=EqualWidth(bins=10)).of(said) == pytest.approx((abs(1.95 - 1) + 0.1) / 3)


def test_weights_count_as_often_as_they_say():
    """The law that bootstrap, jackknife and permutation stand on: weighting is repeating."""
    draw = np.random.default_rng(4)
    truth, probabilities = drawn(60, 3, votes=10, seed=4)
    weights = draw.integers(0, 4, 60)
    at = np.repeat(np.arange(60), weights)
    few = single(truth, probabilities, ordered=True)
    many = single(truth[at], probabilities[at], ordered=True)
    several = (AUROC(), AveragePrecision(), Accuracy(), BalancedAccuracy(), F1(), Kappa(), Kappa(quadratic=True))
    several += (Brier(), LogLoss(), CalibrationError(), MaximumCalibrationError(), ClasswiseCalibrationError())
    several += (DebiasedCalibrationError(binning=EqualWidth()),)
    for measure in several:
        weighted = measure.bind(few)(weights[None].astype(float))[0]
        assert weighted == pytest.approx(measure.of(many), **EXACT), measure.name
    asked = few.one_against_rest("b")
    mass = CalibrationError(binning=EqualMass(bins=4))
    assert mass.bind(asked)(np.ones((2, 60)))[1] == pytest.approx(mass.of(asked), **EXACT)


def test_curve_equals_scikit_learn_and_has_the_areas():
    truth, probabilities = drawn(400, 2, votes=100)
    said = single(truth, probabilities)
    curve = Curve.of(said)
    fpr, tpr, thresholds = metrics.roc_curve(truth, probabilities[:, 1], drop_intermediate=False)
    np.testing.assert_allclose(curve.thresholds, thresholds)
    np.testing.assert_allclose(curve.sensitivity, tpr, atol=1e-12)
    np.testing.assert_allclose(1 - curve.specificity, fpr, atol=1e-12)
    precision, recall, _ = metrics.precision_recall_curve(truth, probabilities[:, 1])
    np.testing.assert_allclose(curve.precision[1:], precision[:-1][::-1], atol=1e-12)
    np.testing.assert_allclose(curve.sensitivity[1:], recall[:-1][::-1], atol=1e-12)
    area = np.trapezoid(curve.sensitivity, 1 - curve.specificity)
    assert area == pytest.approx(AUROC().of(said), **EXACT)
    thin = curve.thinned(30)
    assert len(thin.thresholds) <= 30
    assert (thin.sensitivity[0], thin.sensitivity[-1]) == (0, 1)
    assert json.loads(json.dumps(thin.to_dict(), allow_nan=False))["threshold"][0] is None


def test_midranks_share_what_ties_have():
    np.testing.assert_array_equal(midranks(np.array([0.3, 0.1, 0.3, 0.2])), [3.5, 1, 3.5, 2])


def test_absent_class_is_nan_with_a_reason_and_never_averaged_away():
    truth, probabilities = drawn(100, 4)
    truth = np.where(truth == 3, 0, truth)
    said = single(truth, probabilities)
    for measure in (AUROC(), AveragePrecision(), BalancedAccuracy()):
        assert math.isnan(measure.of(said)), measure.name
        assert "'d'" in measure.reason(said) or measure.reason(said).endswith("d")
    assert AUROC(classes=("a", "b", "c")).of(said) == pytest.approx(
        np.mean([metrics.roc_auc_score(truth == at, probabilities[:, at]) for at in range(3)]), **EXACT
    )
    assert "no case is of 'd'" in AUROC().reason(said)
    assert F1().of(said) == pytest.approx(metrics.f1_score(truth, probabilities.argmax(1), average="macro"), **EXACT)
    never = probabilities * [1, 1, 1, 0]
    said = single(truth, never / never.sum(1, keepdims=True))
    assert math.isnan(F1().of(said))  # scikit-learn and torchmetrics take 0, or leave the class out
    assert "neither in the truth nor decided: d" in F1().reason(said)


def test_logits_keep_what_float32_probabilities_lose():
    logits = np.array([20.0, 25.0, 30.0, -20.0], dtype=np.float32)
    fields = {"classes": ("no", "yes"), "truth": np.array([0, 1, 1, 0]), "cases": tuple("abcd"), "patients": None}
    said = SingleLabel.from_logits(logits, part="val", **fields)
    assert AUROC().of(said) == 1
    assert (np.diff(said.probabilities[:3, 1]) > 0).all()
    both = SingleLabel.from_logits(np.stack((np.zeros(4), logits), axis=1), part="val", **fields)
    np.testing.assert_array_equal(said.probabilities, both.probabilities)
    assert LogLoss().of(said) == pytest.approx(np.logaddexp(0, [20, -25, -30, -20]).mean(), rel=1e-12)
    several = MultiLabel.from_logits(
        logits[:, None] * [1, -1], **fields | {"truth": np.array([[1, 0]] * 3 + [[0, 0]]), "part": "val"}
    )
    np.testing.assert_allclose(several.probabilities[0], [1 / (1 + np.exp(-20)), 1 / (1 + np.exp(20))], rtol=1e-12)


def test_debiased_error_is_near_the_truth_where_the_plain_one_is_far_above():
    draw = np.random.default_rng(5)
    plain, debiased = [], []
    for _ in range(40):
        p = draw.random(300)
        said = single((draw.random(300) < p).astype(int), np.stack((1 - p, p), axis=1))  # perfect probabilities
        plain.append(CalibrationError(binning=EqualMass(bins=30)).of(said))
        debiased.append(DebiasedCalibrationError(binning=EqualMass(bins=30)).of(said))
    assert np.mean(plain) > 0.08
    assert np.mean(debiased) < 0.05


def test_debiased_error_equals_its_formula():
    truth, probabilities = drawn(200, 2, seed=6)
    p, bins = probabilities[:, 1], np.minimum((probabilities[:, 1] * 5).astype(int), 4)
    total = 0.0
    for at in range(5):
        y, q = truth[bins == at], p[bins == at]
        total += len(y) / 200 * ((y.mean() - q.mean()) ** 2 - y.mean() * (1 - y.mean()) / (len(y) - 1))
    measure = DebiasedCalibrationError(binning=EqualWidth(bins=5))
    assert measure.of(single(truth, probabilities)) == pytest.approx(math.sqrt(max(total, 0)), **EXACT)


def test_brier_parts_add_up():
    said = single(*drawn(300, 2, seed=7))
    parts = brier_parts(said)
    total = parts.reliability - parts.resolution + parts.uncertainty + parts.within
    assert total == pytest.approx(Brier().of(said), **EXACT)
    assert brier_parts(said, binning=EqualMass(bins=300)).within == pytest.approx(0, abs=1e-12)


def test_equal_mass_bins_hold_as_many_cases_and_keep_ties_together():
    bins = EqualMass(bins=4).assign(np.random.default_rng(0).random(100))
    assert np.bincount(bins).tolist() == [25] * 4
    assert EqualMass(bins=4).assign(np.array([0.5] * 9 + [0.9])).tolist() == [0] * 9 + [1]
    assert EqualWidth(bins=4).assign(np.array([0, 0.25, 0.99, 1])).tolist() == [0, 1, 3, 3]


def test_reliability_points_have_counts_and_intervals():
    truth, probabilities = drawn(300, 2, seed=8)
    said = single(truth, probabilities, patients=tuple(f"p{at // 3}" for at in range(300)))
    points = reliability(said)
    assert sum(point.true.images for point in points) == 300
    assert [point.said for point in points] == sorted(point.said for point in points)
    for point in points:
        assert point.true.interval.low <= point.true.value <= point.true.interval.high
        assert point.true.patients <= point.true.images
    assert json.loads(json.dumps([point.to_dict() for point in points], allow_nan=False))


def test_grades_become_a_question_of_at_least():
    truth, probabilities = drawn(200, 4)
    said = single(truth, probabilities, classes=("none", "mild", "moderate", "severe"), ordered=True)
    asked = said.at_least("moderate")
    assert asked.classes == ("not moderate or higher", "moderate or higher")
    assert AUROC().of(asked) == pytest.approx(metrics.roc_auc_score(truth >= 2, probabilities[:, 2:].sum(1)), **EXACT)
    with pytest.raises(ValueError, match="above the lowest, 'none'"):
        said.at_least("none")


def test_patients_get_the_mean_of_their_images_and_one_truth():
    said = single(
        [0, 1, 0, 1], np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.2, 0.8]]), patients=("x", "y", "x", "y")
    )
    whole = said.per_patient()
    assert whole.cases == ("x", "y")
    assert whole.truth.tolist() == [0, 1]
    np.testing.assert_allclose(whole.probabilities, [[0.7, 0.3], [0.3, 0.7]])
    with pytest.raises(ValueError, match="1 of 2 patients have images of different classes"):
        replace(said, truth=np.array([0, 1, 1, 1])).per_patient()
    with pytest.raises(ValueError, match="need to know the patients"):
        replace(said, patients=None).per_patient()


def test_fingerprint_is_of_cases_and_truth_in_any_order():
    truth, probabilities = drawn(20, 3)
    said = single(truth, probabilities)
    assert said.select(np.arange(20)[::-1]).fingerprint == said.fingerprint
    assert replace(said, probabilities=probabilities[:, [1, 0, 2]]).fingerprint == said.fingerprint
    assert replace(said, truth=np.roll(truth, 1)).fingerprint != said.fingerprint


GOOD = {
    "classes": ("no", "yes"),
    "truth": np.array([0, 1, 1]),
    "probabilities": np.array([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]]),
    "cases": ("a", "b", "c"),
    "patients": ("p", "p", "q"),
    "part": "test",
}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"part": "validation"}, "one of the parts train, val, test, not of 'validation'"),
        ({"classes": ("yes", "yes")}, "two classes or more with different names"),
        ({"classes": ("a", "b", "c")}, r"3 columns \(a, b, c\), not \[3, 2\]"),
        ({"truth": np.array([0, 1])}, "3 cases, 2 truth, 3 probabilities, 3 patients"),
        ({"patients": ("p",)}, "3 probabilities, 1 patients"),
        ({"patients": ("p", "", None)}, r"2 of 3 do not \(b, c\); give patients=None"),
        ({"cases": ("a", "a", "c")}, "1 of 3 stand twice or more"),
        ({"truth": np.array([0, 1, 2])}, r"from 0 to 1, 1 of 3 entries are not in the table \(2\)"),
        ({"truth": np.array([0, -1, -1])}, r"2 of 3 entries are not in the table \(-1\)"),
        ({"truth": np.array([0.0, 1.0, np.nan])}, "class indices, not .* float64"),
        ({"probabilities": np.array([[0.5, 0.5], [np.nan, 0.8], [np.inf, 0.1]])}, "2 of 3 cases hold NaN or infinity"),
        ({"probabilities": np.array([[0.5, 0.5], [-1, 2], [0.9, 0.1]])}, "1 of 3 cases lie outside 0 to 1"),
        ({"probabilities": np.array([[0.5, 0.5], [0.6, 0.6], [0.9, 0.1]])}, "1 of 3 cases do not sum to 1, .* to 1.2"),
        ({"temperature": 0.0}, "greater than 0, not 0.0"),
        (
            {"truth": np.zeros(0, int), "probabilities": np.zeros((0, 2)), "cases": (), "patients": ()},
            "no case to score",
        ),
    ],
)
def test_refuses_what_cannot_be_scored_in_one_line(wrong, said):
    with pytest.raises(ValueError, match=said) as error:
        SingleLabel(**GOOD | wrong)
    assert "\n" not in str(error.value)


def test_refuses_measures_that_have_no_meaning():
    several = labels(np.array([[0, 1], [1, 1]]), np.full((2, 2), 0.5))
    with pytest.raises(ValueError, match="kappa is of one class for each case"):
        Kappa().bind(several)
    with pytest.raises(ValueError, match="a reliability diagram is of one class"):
        reliability(several)
    three = single(*drawn(30, 3))
    with pytest.raises(ValueError, match="these have no order: a, b, c"):
        Kappa(quadratic=True).bind(three)
    with pytest.raises(ValueError, match="there are 3"):
        Curve.of(three)
    with pytest.raises(ValueError, match="there is no class 'z'"):
        AUROC(classes=("z",)).bind(three)
    with pytest.raises(ValueError, match="3 of no, 0 of yes"):
        Curve.of(SingleLabel(**GOOD | {"truth": np.zeros(3, int)}))
    with pytest.raises(ValueError, match="two bins or more"):
        EqualWidth(bins=1)
    with pytest.raises(ValueError, match="logits of 1 of 2 cases"):
        SingleLabel.from_logits(np.array([0, np.nan]), **{k: v for k, v in GOOD.items() if k != "probabilities"})
