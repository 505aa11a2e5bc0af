"""Intervals and comparisons: laws, closed forms and small simulations."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from geomed.evaluation.agreement import Accuracy
from geomed.evaluation.bootstrap import Bootstrap
from geomed.evaluation.delong import DeLong
from geomed.evaluation.interval import Interval
from geomed.evaluation.multi_label import MultiLabel
from geomed.evaluation.paired_difference import compare
from geomed.evaluation.proper_scores import Brier, LogLoss
from geomed.evaluation.proportion import Proportion, wilson
from geomed.evaluation.roc import AUROC, AveragePrecision
from geomed.evaluation.single_label import SingleLabel


def asked(truth, scores, *, patients=None):
    return SingleLabel(
        classes=("no", "yes"),
        truth=np.asarray(truth),
        probabilities=np.stack((1 - scores, scores), axis=1),
        cases=tuple(f"c{at}" for at in range(len(scores))),
        patients=None if patients is None else tuple(f"p{at}" for at in patients),
        part="test",
    )


def cohort(draw, patients, images, *, gain=1.0, spread=1.0, noise=1.0):
    """Patients are ill or not; the images of one share a deviation, which is what correlates them."""
    ill = np.repeat(draw.random(patients) < 0.4, images)
    shared = np.repeat(draw.normal(size=patients) * spread, images)
    score = gain * ill + shared + draw.normal(size=patients * images) * noise
    return asked(ill.astype(int), 1 / (1 + np.exp(-score)), patients=np.repeat(np.arange(patients), images))


def test_clustered_bootstrap_covers_and_the_naive_one_does_not():
    draw = np.random.default_rng(0)
    truth = stats.norm.cdf(1 / math.sqrt(2 * (1 + 0.25)))  # of two deviations, patient's and image's, of each case
    inside = np.zeros(2)
    for trial in range(250):
        images = cohort(draw, 60, 5, noise=0.5)
        for at, seen in enumerate((images, replace(images, patients=None))):
            (found,) = Bootstrap(seed=trial, draws=300).estimates(seen, [AUROC()])
            inside[at] += found.interval.low <= truth <= found.interval.high
    clustered, naive = inside / 250
    assert 0.91 <= clustered <= 0.985
    assert naive < 0.75


def test_unstratified_and_accelerated_intervals_cover_too():
    draw = np.random.default_rng(1)
    truth = stats.norm.cdf(2.2 / math.sqrt(2))  # 0.94, where percentiles are skewed
    kinds = (Bootstrap(seed=0, draws=200, stratified=False), Bootstrap(seed=0, draws=200, accelerated=True))
    inside = np.zeros(2)
    for trial in range(150):
        images = cohort(draw, 80, 1, gain=2.2, spread=0)
        for at, kind in enumerate(kinds):
            (found,) = replace(kind, seed=trial).estimates(images, [AUROC()])
            inside[at] += found.interval.low <= truth <= found.interval.high
    assert (inside / 150 >= 0.88).all()


def test_accelerated_interval_equals_scipy():
    draw = np.random.default_rng(15)
    truth = draw.integers(0, 2, 60)
    images = asked(truth, draw.beta(0.7, 0.7, 60))  # a few very wrong ones: the loss is skewed
    kind = Bootstrap(seed=0, draws=9999, stratified=False, accelerated=True)
    found = kind.estimates(images, [LogLoss()])[0].interval
    losses = -np.log(np.where(truth, images.probabilities[:, 1], images.probabilities[:, 0]))
    theirs = stats.bootstrap((losses,), np.mean, method="BCa", n_resamples=9999, rng=np.random.default_rng(1))
    plain = replace(kind, accelerated=False).estimates(images, [LogLoss()])[0].interval
    width = plain.high - plain.low
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)
    assert found.high > plain.high + 0.03 * width


def test_delong_equals_its_definition():
    """Placements by comparing every pair, as the paper writes them, with ties."""
    draw = np.random.default_rng(2)
    truth = draw.integers(0, 2, 80)
    runs = [np.round(np.clip(0.25 * truth + 0.7 * draw.random(80), 0, 1), 1) for _ in range(3)]
    found = DeLong.of(*(asked(truth, run) for run in runs))
    v10, v01 = [], []
    for run in runs:
        yes, no = run[truth == 1], run[truth == 0]
        psi = (yes[:, None] > no) + 0.5 * (yes[:, None] == no)
        v10.append(psi.mean(1))
        v01.append(psi.mean(0))
    expected = np.cov(v10) / (truth == 1).sum() + np.cov(v01) / (truth == 0).sum()
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.areas, [roc_auc_score(truth, run) for run in runs], atol=1e-12)
    assert found.method == "DeLong"
    gap, p = found.difference(0, 2)
    variance = expected[0, 0] + expected[2, 2] - 2 * expected[0, 2]
    assert gap.value == pytest.approx(found.areas[2] - found.areas[0])
    assert p == pytest.approx(2 * stats.norm.sf(abs(gap.value) / math.sqrt(variance)))


def test_delong_and_bootstrap_agree():
    draw = np.random.default_rng(3)
    for images, name in ((cohort(draw, 400, 1), "DeLong"), (cohort(draw, 150, 4), "Obuchowski, by patients")):
        closed = DeLong.of(images)
        assert closed.method == name
        for kind in (Bootstrap(seed=1), Bootstrap(seed=1, accelerated=True)):
            (drawn,) = kind.estimates(images, [AUROC()])
            one = closed.estimate().interval
            assert drawn.interval.low == pytest.approx(one.low, abs=0.012)
            assert drawn.interval.high == pytest.approx(one.high, abs=0.012)


def test_obuchowski_is_delong_where_each_patient_has_one_image_and_wider_else():
    images = cohort(np.random.default_rng(4), 100, 3, noise=0.2)
    wide, narrow = DeLong.of(images), DeLong.of(replace(images, patients=None))
    np.testing.assert_array_equal(wide.areas, narrow.areas)
    assert wide.covariance[0, 0] > 2 * narrow.covariance[0, 0]
    own = replace(images, patients=tuple(f"own{at}" for at in range(300)))
    np.testing.assert_allclose(DeLong.of(own).covariance, narrow.covariance)


def test_perfect_ranking_has_no_delong_interval_and_says_why():
    images = asked([0, 0, 1, 1], np.array([0.1, 0.2, 0.8, 0.9]))
    found = DeLong.of(images).estimate()
    assert found.value == 1
    assert not found.interval.known
    assert "few or easy cases" in found.interval.note
    assert found.text() == "1.000"
    json.dumps(found.to_dict(), allow_nan=False)
    gap, p = DeLong.of(images, images).difference()
    assert (gap.value, p) == (0, 1)
    (drawn,) = Bootstrap(seed=0).estimates(images, [AUROC()])
    assert "all draws agree" in drawn.interval.note


def test_permutation_test_is_exact_for_few_patients():
    draw = np.random.default_rng(5)
    truth = np.repeat(np.array([0, 1, 0, 1, 1, 0, 1, 0]), 2)
    owners = np.repeat(np.arange(8), 2)
    first = asked(truth, np.clip(0.2 * truth + draw.random(16) * 0.8, 0, 1), patients=owners)
    second = asked(truth, np.clip(0.5 * truth + draw.random(16) * 0.5, 0, 1), patients=owners)
    (found,) = compare(first, second, [Brier()], bootstrap=Bootstrap(seed=0), permutations=5000)
    loss = [((run.probabilities[:, 1] - truth) ** 2).reshape(8, 2).sum(1) for run in (first, second)]
    gaps = [np.dot(signs, loss[1] - loss[0]) for signs in itertools.product((1, -1), repeat=8)]
    exact = np.mean(np.abs(gaps) >= abs(gaps[0]) - 1e-12)
    assert found.p_value == pytest.approx(exact, abs=0.02)
    assert found.difference.value == pytest.approx(found.second - found.first)


def test_paired_comparison_sees_what_separate_intervals_hide():
    draw = np.random.default_rng(6)
    first = cohort(draw, 120, 3)
    logits = np.log(first.probabilities[:, 1] / first.probabilities[:, 0])
    better = asked(
        first.truth,
        1 / (1 + np.exp(-logits - 0.6 * first.truth + draw.normal(size=360) * 0.1)),
        patients=np.repeat(np.arange(120), 3),
    )
    kind = Bootstrap(seed=0, draws=1000)
    found = {one.measure: one for one in compare(first, better, [AUROC(), AveragePrecision()], bootstrap=kind)}
    assert found["AUROC"].difference.interval.low > 0
    assert found["AUROC"].p_value < 0.01
    apart = [kind.estimates(run, [AUROC()])[0].interval for run in (first, better)]
    assert apart[0].high > apart[1].low  # taken one by one, they overlap
    shuffled = better.select(draw.permutation(360))
    again = compare(first, shuffled, [AUROC()], bootstrap=kind)[0]
    assert again.difference.interval == found["AUROC"].difference.interval
    assert json.loads(json.dumps(again.to_dict(), allow_nan=False))["measure"] == "AUROC"


def test_permutation_test_holds_its_level_when_scales_differ():
    """Ranks are exchanged, not scores: the same ranking on another scale is no difference."""
    draw = np.random.default_rng(7)
    low = 0
    for trial in range(100):
        ill = draw.integers(0, 2, 60)
        ill[:2] = 0, 1
        runs = [asked(ill, stats.norm.cdf(ill + draw.normal(size=60)) ** power) for power in (1, 6)]
        low += compare(*runs, [AUROC()], bootstrap=Bootstrap(seed=trial, draws=100), permutations=200)[0].p_value < 0.05
    assert low <= 12


def test_same_run_twice_differs_by_nothing():
    images = cohort(np.random.default_rng(8), 40, 2)
    for found in compare(images, images, [AUROC(), Accuracy(), LogLoss()], bootstrap=Bootstrap(seed=0, draws=100)):
        assert found.difference.value == 0
        assert (found.difference.interval.low, found.difference.interval.high) == (0, 0)
        assert found.p_value == 1


def test_comparison_refuses_other_cases():
    draw = np.random.default_rng(9)
    images = cohort(draw, 30, 2)
    kind = Bootstrap(seed=0)
    with pytest.raises(ValueError, match="10 of 60 of the first are not in the second and 0 of 50"):
        compare(images, images.select(np.arange(50)), [AUROC()], bootstrap=kind)
    with pytest.raises(ValueError, match="60 cases have another truth and 0 another patient"):
        compare(images, replace(images, truth=1 - images.truth), [AUROC()], bootstrap=kind)
    with pytest.raises(ValueError, match="0 cases have another truth and 60 another patient"):
        compare(images, replace(images, patients=None), [AUROC()], bootstrap=kind)
    with pytest.raises(ValueError, match="same classes"):
        compare(images, replace(images, classes=("no", "perhaps")), [AUROC()], bootstrap=kind)
    with pytest.raises(ValueError, match="100 permutations"):
        compare(images, images, [AUROC()], bootstrap=kind, permutations=10)
    with pytest.raises(ValueError, match="same cases in the same order"):
        DeLong.of(images, images.select(np.arange(60)[::-1]))


def test_draws_without_a_class_are_left_out_and_counted():
    truth = np.array([1, 1] + [0] * 40)
    images = asked(truth, np.linspace(0.9, 0.1, 42))
    (loose,) = Bootstrap(seed=0, stratified=False).estimates(images, [AUROC()])
    assert loose.interval.left_out == pytest.approx(2000 * (40 / 42) ** 42, rel=0.15)
    (strict,) = Bootstrap(seed=0).estimates(images, [AUROC()])
    assert strict.interval.left_out == 0
    single = asked(truth[1:], np.linspace(0.9, 0.1, 41))
    (rare,) = Bootstrap(seed=0, stratified=False).estimates(single, [AUROC()])
    assert rare.interval.left_out > 600
    draws = list(Bootstrap(seed=0).weights(images))
    assert all((block[:, :2].sum(1) == 2).all() for block in draws)
    assert all((block.sum(1) == 42).all() for block in draws)


def test_patients_come_with_all_their_images():
    images = cohort(np.random.default_rng(10), 20, 3)
    shuffled = images.select(np.random.default_rng(0).permutation(60))
    for block in Bootstrap(seed=3, draws=100).weights(shuffled):
        for owner in range(20):
            assert (np.ptp(block[:, shuffled.patient_of == owner], axis=1) == 0).all()


def test_labels_are_resampled_too():
    draw = np.random.default_rng(11)
    truth = draw.integers(0, 2, (120, 3))
    said = MultiLabel(
        classes=("a", "b", "c"),
        truth=truth,
        probabilities=np.clip(0.3 * truth + 0.7 * draw.random((120, 3)), 0, 1),
        cases=tuple(map(str, range(120))),
        patients=tuple(str(at // 4) for at in range(120)),
        part="test",
    )
    found, other = Bootstrap(seed=0, draws=200).estimates(said, [AUROC(), AUROC(classes=("b",))])
    assert found.interval.low < found.value < found.interval.high
    assert other.interval.high - other.interval.low > found.interval.high - found.interval.low


def test_one_seed_gives_one_interval():
    images = cohort(np.random.default_rng(12), 50, 2)
    one, same, other = (Bootstrap(seed=seed, draws=200).estimates(images, [AUROC()])[0] for seed in (0, 0, 1))
    assert one == same != other


def test_wilson_equals_scipy_for_independent_images():
    for hits, count in ((0, 12), (7, 20), (199, 200), (30, 30)):
        theirs = stats.binomtest(hits, count).proportion_ci(method="wilson")
        found = wilson(hits / count, count)
        assert found == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    found = Proportion.of(np.arange(40) < 40, np.arange(40))
    assert (found.interval.high, found.interval.low) == pytest.approx((1, 0.9124), abs=1e-3)


def test_proportion_interval_covers_with_correlated_images():
    draw = np.random.default_rng(13)
    owners = np.repeat(np.arange(40), 5)
    inside = np.zeros(2)
    for _ in range(500):
        share = np.repeat(draw.beta(2, 1, 40), 5)
        hit = draw.random(200) < share
        for at, who in enumerate((owners, np.arange(200))):
            found = Proportion.of(hit, who).interval
            inside[at] += found.low <= 2 / 3 <= found.high
    assert 0.92 <= inside[0] / 500 <= 0.98
    assert inside[1] / 500 < 0.88


def test_refuses_intervals_of_nothing():
    images = cohort(np.random.default_rng(14), 30, 2)
    alone = replace(images, patients=("p",) * 60)
    with pytest.raises(ValueError, match="there is 1 with 60 images"):
        Bootstrap(seed=0).estimates(alone, [AUROC()])
    with pytest.raises(ValueError, match="there are 1 and 1"):
        DeLong.of(asked([0, 1], np.array([0.2, 0.8])))
    with pytest.raises(ValueError, match="at least 100 draws, not 5"):
        Bootstrap(seed=0, draws=5)
    with pytest.raises(ValueError, match=r"like 0.95, not 95"):
        Bootstrap(seed=0, level=95)
    with pytest.raises(ValueError, match="swap the two"):
        Interval(low=1, high=0, level=0.95, method="by hand")
    assert Proportion.of(np.zeros(0, dtype=bool), np.zeros(0, dtype=int)).to_dict()["value"] is None
