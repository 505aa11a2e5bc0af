import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from geomed.evaluation.feature_rank import effective_rank, spread
from geomed.evaluation.probing import Probed, _Division, _side, _thin, logistic_regression, probe
from geomed.pixels import IGNORE
from geomed.tasks.collapse import Collapse, CollapsedError, Indicators, Watch


def things(seed=0, *, count=600, width=12, classes=5, groups=30, noise=2.0):
    """Features around a centre for each class, with a shift for each group, so that no score is perfect."""
    draw = np.random.default_rng(seed)
    labels, group = draw.integers(0, classes, count), draw.integers(0, groups, count)
    features = 1.5 * draw.normal(size=(classes, width))[labels] + draw.normal(size=(groups, width))[group]
    features += noise * draw.normal(size=(count, width)) + 4.0
    return features.astype(np.float32), labels, group


def sides(labels, groups, *, share=0.3, seed=0):
    division = _Division.draw(labels, groups, share=share, draw=np.random.default_rng(seed))
    return division, division.fitted, division.judged


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_scikit_learn(seed):
    features, labels, groups = things(seed)
    found = probe(features, labels, groups)
    _, fitted, judged = sides(labels, groups)
    truth = labels[judged]

    near = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    answers = near.fit(features[fitted], labels[fitted]).predict(features[judged])
    assert found.knn == pytest.approx(f1_score(truth, answers, average="macro"), abs=1e-12)
    assert found.knn_accuracy == pytest.approx(balanced_accuracy_score(truth, answers), abs=1e-12)

    scaler = StandardScaler().fit(features[fitted].astype(np.float64))
    line = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000)
    line.fit(scaler.transform(features[fitted].astype(np.float64)), labels[fitted])
    answers = line.predict(scaler.transform(features[judged].astype(np.float64)))
    assert found.linear == pytest.approx(f1_score(truth, answers, average="macro"), abs=1e-12)
    assert found.linear_accuracy == pytest.approx(balanced_accuracy_score(truth, answers), abs=1e-12)
    assert 0.4 < found.knn < 1
    assert 0.4 < found.linear < 1
    assert found == Probed(
        knn=found.knn,
        knn_accuracy=found.knn_accuracy,
        linear=found.linear,
        linear_accuracy=found.linear_accuracy,
        classes=(0, 1, 2, 3, 4),
        left_out=(),
        fitted=len(fitted),
        judged=len(judged),
    )


@pytest.mark.parametrize("classes", [2, 4])
def test_logistic_regression_is_that_of_scikit_learn(classes):
    features, labels, _ = things(3, count=200, width=6, classes=classes)
    rows = StandardScaler().fit_transform(features.astype(np.float64))
    weight, bias, settled = logistic_regression(
        torch.from_numpy(rows), torch.from_numpy(labels), classes, tolerance=1e-8
    )
    assert settled
    if classes == 2:  # scikit-learn's binary form has one vector w, and two of w / 2 have half its penalty
        line = LogisticRegression(C=2.0, tol=1e-12, max_iter=5000).fit(rows, labels)
        np.testing.assert_allclose((weight[:, 1] - weight[:, 0]).numpy(), line.coef_[0], atol=1e-5)
        np.testing.assert_allclose((bias[1] - bias[0]).item(), line.intercept_[0], atol=1e-5)
        return
    line = LogisticRegression(C=1.0, tol=1e-12, max_iter=5000).fit(rows, labels)
    np.testing.assert_allclose(weight.numpy().T, line.coef_, atol=1e-5)
    np.testing.assert_allclose((bias - bias.mean()).numpy(), line.intercept_ - line.intercept_.mean(), atol=1e-5)


def test_a_low_temperature_lets_the_nearest_one_decide():
    features, labels, groups = things(4)
    nearest = probe(features, labels, groups, neighbours=1)
    cold = probe(features, labels, groups, temperature=1e-5)
    assert (cold.knn, cold.knn_accuracy) == (nearest.knn, nearest.knn_accuracy)


def scores(found):
    return found.knn, found.knn_accuracy, found.linear, found.linear_accuracy


def test_the_same_again_and_under_any_order_of_rows():
    features, labels, groups = things(5)
    features[:200] = features[0]  # many rows are equally near
    found = probe(features, labels, groups)
    assert probe(features, labels, groups) == found
    order = np.random.default_rng(0).permutation(len(labels))
    assert probe(features[order], labels[order], groups[order]) == found
    assert probe(features, labels, groups, seed=1) != found


def test_neighbours_do_not_see_rotation_and_size_the_line_not_scale_and_shift_of_channels():
    features, labels, groups = things(6)
    features = features.astype(np.float64)
    found = probe(features, labels, groups)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
    turned = probe(17.0 * features @ turn, labels, groups)
    assert (turned.knn, turned.knn_accuracy) == (found.knn, found.knn_accuracy)
    draw = np.random.default_rng(2)
    shifted = probe(features * draw.uniform(0.1, 9, 12) + draw.normal(size=12) * 5, labels, groups)
    assert (shifted.linear, shifted.linear_accuracy) == (found.linear, found.linear_accuracy)
    assert shifted.knn != found.knn


def test_no_group_is_on_both_sides_and_every_class_is():
    draw = np.random.default_rng(7)
    for seed in range(50):
        labels, groups = draw.integers(0, 6, 80), draw.integers(0, 12, 80)
        division, fitted, judged = sides(labels, groups, seed=seed)
        assert not set(groups[fitted]) & set(groups[judged])
        assert set(labels[fitted]) == set(labels[judged]) == set(division.classes)
        assert division.left_out == ()
        assert 0.1 < len(judged) / 80 < 0.6


def test_groups_of_one_class_each_are_shared_out_as_asked():
    labels = np.repeat(np.arange(4), 20)
    _, fitted, judged = sides(labels, np.arange(80), share=0.25)
    assert np.bincount(labels[judged]).tolist() == [5] * 4
    assert np.bincount(labels[fitted]).tolist() == [15] * 4


def test_a_class_of_one_group_is_left_out_and_counted():
    features, labels, groups = things(8)
    labels[groups == 3] = 9
    found = probe(features, labels, groups)
    assert found.left_out == (9,)
    assert found.classes == (0, 1, 2, 3, 4)
    assert found.fitted + found.judged == (labels != 9).sum()
    assert "one group: classes [9]" in found.note


def test_groups_change_sides_where_that_brings_a_class_to_both():
    # the rarest class takes groups 0 and 1 apart or not; whatever is drawn, all classes can be on both sides
    holds = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=bool)
    for seed in range(20):
        side = _side(holds, 0.3, np.random.default_rng(seed))
        assert holds[side].any(0).all()
        assert holds[~side].any(0).all()


def test_what_no_division_can_give_to_both_sides_is_left_out():
    labels, groups = np.array([0, 1, 1, 2, 2, 0, 3, 3]), np.array([0, 0, 1, 1, 2, 2, 3, 4])
    division, fitted, judged = sides(labels, groups)  # every two of classes 0, 1, 2 share one of their groups
    assert len(division.left_out) == 1
    assert "no division" in division.notes[0]
    assert set(labels[fitted]) == set(labels[judged]) == set(division.classes)


def test_ignored_labels_are_left_out():
    features, labels, groups = things(9)
    found = probe(features, labels, groups)
    more = np.concatenate((features, 100 * features[:50]))
    padded = probe(more, np.append(labels, np.full(50, IGNORE)), np.append(groups, np.full(50, 999)))
    assert padded == found


def test_work_is_capped_and_every_class_stays():
    features, labels, groups = things(10)
    labels[labels == 4] = 3
    labels[np.flatnonzero(labels == 3)[:6]] = 4  # rare
    found = probe(features, labels, groups, limit=50, neighbours=5)
    assert found.classes == (0, 1, 2, 3, 4)
    assert 40 <= found.fitted <= 50
    assert 40 <= found.judged <= 50
    assert probe(features, labels, groups, limit=50, neighbours=5) == found
    picked = _thin(np.arange(len(labels)), labels, 50, np.random.default_rng(0))
    assert len(np.unique(picked)) == len(picked) <= 50
    assert set(labels[picked]) == set(range(5))


def test_rows_that_are_taken_do_not_depend_on_the_features():
    features, labels, groups = things(11)
    first = probe(features, labels, groups, limit=60)
    constant = np.concatenate((np.ones((600, 1), np.float32), features), axis=1)  # says nothing to the linear probe
    assert probe(constant, labels, groups, limit=60).linear == first.linear


def test_collapsed_features_score_as_guessing():
    _, labels, groups = things(12)
    found = probe(np.full((600, 8), 0.3, np.float32), labels, groups)
    assert found.knn_accuracy == found.linear_accuracy == pytest.approx(0.2)
    nothing = probe(np.zeros((600, 8), np.float32), labels, groups)
    assert nothing.knn_accuracy == pytest.approx(0.2)


def test_few_rows_all_vote():
    found = probe(*things(13, count=20, classes=2, groups=6))
    assert "all of them vote" in found.note


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f, y, g: (f, y[:-1], g), "labels must be whole numbers"),
        (lambda f, y, g: (f, y, g[:-1]), "groups must be whole numbers"),
        (lambda f, y, g: (f, y.astype(float), g), "labels must be whole numbers"),
        (lambda f, y, g: (f, y - 1, g), "0 or greater, not -1"),
        (lambda f, y, g: (f[:, 0], y, g), r"features must be numbers \[n, d\]"),
        (lambda f, y, g: (np.where(f > f.max() - 1e-6, np.nan, f), y, g), "1 of 600 rows are not"),
        (lambda f, y, g: (f, y, 0 * g), "needs two, there are 1"),
        (lambda f, y, g: (f, 0 * y, g), "tells classes apart"),
        (lambda f, _, g: (f, g, g), "there are 0; 30 are in one group only"),
        (lambda f, y, g: (f, 0 * y + IGNORE, g), "there are 0 with labels"),
    ],
)
def test_bad_rows_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        probe(*change(*things(14)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"neighbours": 0}, "neighbours must be"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"judged": 1.0}, "judged must be"),
        ({"limit": 3}, "limit must leave a row"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        probe(*things(14), **settings)


def test_rank_of_equally_strong_directions_is_their_number():
    turn = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(0)))[0]
    assert effective_rank(7 * turn[:, :9]) == pytest.approx(9, abs=1e-4)
    assert effective_rank(torch.eye(16).repeat(5, 1)) == pytest.approx(16, abs=1e-9)


def test_rank_and_spread_of_alike_rows():
    rows = torch.randn(64, generator=torch.Generator().manual_seed(0)).expand(100, -1)
    assert effective_rank(rows) == pytest.approx(1, abs=1e-9)
    assert spread(rows) == pytest.approx(0, abs=1e-6)
    line = rows * torch.linspace(-3, 3, 100)[:, None]
    assert effective_rank(line) == pytest.approx(1, abs=1e-5)
    assert spread(line) > 0.5  # a line is not a point: only the rank sees it
    assert effective_rank(torch.zeros(8, 4)) == 0
    assert spread(torch.zeros(8, 4)) == 0


def test_rank_and_spread_are_the_formulae_in_numpy_too():
    rows = np.random.default_rng(0).normal(size=(200, 32)) + 0.3
    strengths = np.linalg.svd(rows, compute_uv=False)
    shares = strengths / strengths.sum()
    assert effective_rank(rows) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert spread(rows) == pytest.approx(unit.std(0).mean() * 32**0.5, rel=1e-9)
    for measure in (effective_rank, spread):
        assert measure(torch.from_numpy(rows)) == measure(rows)
        assert measure(-40 * rows) == pytest.approx(measure(rows), rel=1e-9)
        assert measure(rows.astype(np.float32)) == pytest.approx(measure(rows), rel=1e-5)
        assert measure(torch.from_numpy(rows).bfloat16().requires_grad_()) == pytest.approx(measure(rows), rel=1e-2)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(32, 32)))[0]
    assert effective_rank(rows @ turn) == pytest.approx(effective_rank(rows), rel=1e-9)


def test_spread_of_noise_around_zero_is_one():
    rows = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert spread(rows) == pytest.approx(1, abs=0.01)
    assert spread(rows) <= 1


@pytest.mark.parametrize("measure", [effective_rank, spread])
def test_rank_and_spread_refuse_what_is_no_matrix_of_numbers(measure):
    with pytest.raises(ValueError, match=r"must be \[n, d\]"):
        measure(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"must be \[n, d\]"):
        measure(np.zeros((0, 4)))
    with pytest.raises(ValueError, match="1 of 3 rows are not"):
        measure(torch.tensor([[0.0], [torch.nan], [1.0]]))


LIMITS = Collapse(after=20, every=10, images=64)


def run(watch, steps, features, entropy=None, *, start=0):
    """Train in pretence; ``features`` and ``entropy`` are functions of step and generator."""
    measured = []
    for step in range(start, start + steps):
        draw = torch.Generator().manual_seed(step)
        level = None if entropy is None else torch.tensor(entropy(step))
        watch.add(features(step, draw), level)
        found = watch.check(step)
        assert (found is None) == bool(step % watch.settings.every)
        measured += [found] if found else []
    return measured


def healthy(_step, draw):
    return torch.randn(16, 64, generator=draw) + 1


def test_a_healthy_run_goes_on():
    measured = run(Watch(LIMITS), 200, healthy, lambda _step: 0.6)
    assert len(measured) == 20
    assert measured[-1].entropy == pytest.approx(0.6)
    assert set(measured[-1].figures()) == {"rank", "spread", "entropy"}
    assert set(run(Watch(LIMITS), 1, healthy)[0].figures()) == {"rank", "spread"}


@pytest.mark.parametrize("width", [64, 1024])
def test_features_like_those_of_mae_go_on(width):
    mean = 10 * torch.randn(width, generator=torch.Generator().manual_seed(9))
    few = torch.randn(3, width, generator=torch.Generator().manual_seed(8))

    def alike(_step, draw):
        return mean + torch.randn(16, 3, generator=draw) @ few * 0.15

    measured = run(Watch(LIMITS), 100, alike)
    assert measured[-1].rank < LIMITS.min_rank  # the limits alone would stop it
    assert measured[-1].spread < LIMITS.min_spread


def test_one_point_is_found_by_spread():
    """Uniform collapse: all images are alike, and so are their assignments, over all prototypes evenly."""

    def falling(step, draw):
        return healthy(step, draw) * (1 if step < 50 else 0.9 ** (step - 50)) + 1

    with pytest.raises(CollapsedError, match=r"collapsed onto one point: .* since step \d+0; .* Lower the learning"):
        run(Watch(LIMITS), 300, falling, lambda _step: 1.0)


def test_one_direction_is_found_by_rank():
    def flat(step, draw):
        rows = healthy(step, draw)
        return rows if step < 50 else torch.randn(16, 1, generator=draw) * torch.ones(64) + 1e-4 * rows

    with pytest.raises(CollapsedError, match=r"onto one direction: .* at step 80 .* since step 60"):
        run(Watch(LIMITS), 300, flat, lambda _step: 0.7)


def test_one_prototype_is_found_by_entropy():
    with pytest.raises(CollapsedError, match=r"prototype: .* is 0\.001 at step 80 .* 0\.02 since step 60; .* 0\.8"):
        run(Watch(LIMITS), 300, healthy, lambda step: 0.8 if step < 50 else 0.001)


def test_collapsed_before_the_first_check_is_found_too():
    with pytest.raises(CollapsedError, match="onto one"):
        run(Watch(LIMITS), 300, lambda _step, _draw: torch.ones(16, 64))
    with pytest.raises(CollapsedError, match="onto one"):
        run(Watch(LIMITS), 300, lambda _step, _draw: torch.zeros(16, 64))


def test_patience_and_the_first_steps():
    def blink(step):
        return 0.0 if step % 30 > 10 else 0.8  # too low at two checks of three

    run(Watch(LIMITS), 300, healthy, blink)
    early = Collapse(after=100, every=10, patience=1)
    run(Watch(early), 100, healthy, lambda step: 0.8 if step < 5 else 0.0)
    with pytest.raises(CollapsedError, match="at step 100"):
        run(Watch(early), 101, healthy, lambda step: 0.8 if step < 5 else 0.0)


def test_limits_can_be_turned_off():
    off = Collapse(after=0, every=1, patience=1, min_rank=1, min_spread=0, min_entropy=0)
    run(Watch(off), 60, lambda _step, _draw: torch.zeros(16, 64), lambda _step: 0.0)


@pytest.mark.parametrize("where", ["features", "loss", "entropy"])
def test_what_is_not_finite_stops_the_run(where):
    watch = Watch(LIMITS)
    good = torch.tensor(0.5)
    for step in range(31):
        bad = step == 24
        features = healthy(step, torch.Generator().manual_seed(step))
        if bad and where == "features":
            features[3, 5] = torch.inf
        nan = torch.tensor(torch.nan)
        watch.add(features, nan if bad and where == "entropy" else good, loss=nan if bad and where == "loss" else good)
        if step < 30:
            watch.check(step)
    with pytest.raises(CollapsedError, match=r"not finite .* at step 30, first in batch 4 of the 10 .* \(step 20\)"):
        watch.check(30)


def test_the_last_rows_are_kept_and_nothing_else():
    watch = Watch(Collapse(images=32, every=1))
    tokens = torch.randn(16, 50, 8, requires_grad=True)
    for number in range(6):
        watch.add(tokens[:, number])
    assert sum(map(len, watch._rows)) == 32
    assert all(rows.untyped_storage().nbytes() == 16 * 8 * 4 and not rows.requires_grad for rows in watch._rows)
    watch.add(torch.randn(500, 8))
    assert sum(map(len, watch._rows)) == 32
    watch.add(torch.zeros(20, 8, dtype=torch.bfloat16))
    rows = torch.cat([some.float() for some in watch._rows])[-32:]
    assert (rows[-20:] == 0).all()
    assert watch.check(1) == Indicators(rank=effective_rank(rows), spread=spread(rows), entropy=None)
    assert watch.check(1) is None  # batches that are accumulated share a step
    assert watch.check(2) is None  # nothing new


def test_one_image_is_not_judged():
    watch = Watch(Collapse(every=1, after=0, patience=1))
    watch.add(torch.ones(1, 8))
    assert watch.check(1) is None


def test_a_resumed_run_is_judged_as_if_it_had_never_stopped(tmp_path):
    def falling(step):
        return 0.8 if step < 50 else 0.0

    whole, first, second = Watch(LIMITS), Watch(LIMITS), Watch(LIMITS)
    expected = run(whole, 75, healthy, falling)
    found = run(first, 65, healthy, falling)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    found += run(second, 10, healthy, falling, start=65)
    assert found == expected
    for watch in (whole, second):
        with pytest.raises(CollapsedError, match=r"at step 80 .* since step 60"):
            run(watch, 10, healthy, falling, start=75)
    empty = Watch(LIMITS)
    empty.load_state_dict(Watch(LIMITS).state_dict())
    assert run(empty, 1, healthy, falling) == expected[:1]


def test_features_of_another_shape_are_refused():
    watch = Watch(LIMITS)
    with pytest.raises(ValueError, match=r"must be \[n, d\]"):
        watch.add(torch.zeros(2, 3, 4))
    watch.add(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"must be \[n, 3\]"):
        watch.add(torch.zeros(2, 4))


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_rank": 0.5},
        {"min_spread": 1.0},
        {"min_entropy": -0.1},
        {"share": 1.0},
        {"after": -1},
        {"patience": 0},
        {"every": 0},
        {"images": 4},
        {"images": 64, "min_rank": 65},
    ],
)
def test_senseless_limits_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{list(wrong)[-1]} must be"):
        Collapse(**wrong)
