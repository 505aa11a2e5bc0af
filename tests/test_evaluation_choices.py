"""What is chosen on validation, who is shown, and how often the test set was opened."""

import itertools
import json
import math
from dataclasses import replace
from multiprocessing.dummy import Pool

import numpy as np
import pytest

from geomed.evaluation.bootstrap import Bootstrap
from geomed.evaluation.classification_scores import ClassificationScores, standard_measures
from geomed.evaluation.multi_label import MultiLabel
from geomed.evaluation.openings import openings_beside
from geomed.evaluation.operating_point import (
    OperatingPoint,
    OperatingScores,
    SensitivityAtLeast,
    SpecificityAtLeast,
    Youden,
)
from geomed.evaluation.predictions import softmax
from geomed.evaluation.proper_scores import LogLoss
from geomed.evaluation.roc import AUROC, Curve
from geomed.evaluation.single_label import SingleLabel
from geomed.evaluation.subgroups import SubgroupTable, bands, suppress
from geomed.evaluation.temperature import Temperature

QUICK = Bootstrap(seed=0, draws=100)


def predicted(count=200, classes=2, *, part="val", seed=0, scale=1.0, ordered=False):
    draw = np.random.default_rng(seed)
    truth = np.concatenate((np.arange(classes), draw.integers(0, classes, count - classes)))
    logits = draw.normal(size=(count, classes))
    logits[np.arange(count), truth] += 1.2
    return SingleLabel.from_logits(
        scale * logits,
        classes=tuple("abcdef"[:classes]),
        truth=truth,
        cases=tuple(f"{part}{seed}-{at}" for at in range(count)),
        patients=tuple(f"p{at // 2}" for at in range(count)),
        part=part,
        ordered=ordered,
    )


def labelled(count=200, *, part="val", scale=1.0):
    draw = np.random.default_rng(3)
    truth = draw.integers(0, 2, (count, 3))
    return MultiLabel.from_logits(
        scale * (2 * truth - 1 + draw.normal(size=(count, 3)) * 1.5),
        classes=("a", "b", "c"),
        truth=truth,
        cases=tuple(map(str, range(count))),
        patients=None,
        part=part,
    )


@pytest.mark.parametrize("scale", [0.05, 0.5, 1, 3, 4])
@pytest.mark.parametrize("make", [predicted, lambda **f: predicted(classes=4, **f), labelled])
def test_temperature_finds_the_least_loss_and_never_worsens_it(make, scale):
    said = make(scale=scale)
    fitted = Temperature.fit(said)
    scaled = fitted.apply(said)
    assert fitted.before == pytest.approx(LogLoss().of(said), rel=1e-9)
    assert fitted.after == pytest.approx(LogLoss().of(scaled), rel=1e-9)
    assert fitted.after <= fitted.before
    assert not fitted.note
    for other in fitted.value * np.array([0.9, 0.999, 1.001, 1.1]):
        assert LogLoss().of(replace(fitted, value=other).apply(said)) >= fitted.after - 1e-12
    assert (scaled.answers == said.answers).all()
    assert AUROC().of(scaled) == pytest.approx(AUROC().of(said), abs=0.01)  # equal for two classes but for rounding
    # a scale that was put on is taken off again
    assert fitted.value / scale == pytest.approx(Temperature.fit(make()).value, rel=1e-5)


def test_temperature_is_softmax_of_divided_logits():
    logits = np.random.default_rng(0).normal(size=(50, 4)) * 3
    said = predicted(50, 4)
    said = replace(said, probabilities=softmax(logits))
    fitted = replace(Temperature.fit(predicted()), value=2.5)
    np.testing.assert_allclose(fitted.apply(said).probabilities, softmax(logits / 2.5), atol=1e-14)


def test_temperature_is_of_validation_only_and_once():
    said = predicted()
    with pytest.raises(ValueError, match="fitted on validation, not on test"):
        Temperature.fit(replace(said, part="test"))
    fitted = Temperature.fit(said)
    with pytest.raises(ValueError, match="scaled with temperature"):
        Temperature.fit(fitted.apply(said))
    with pytest.raises(ValueError, match=r"scaled with temperature .* already"):
        fitted.apply(fitted.apply(said))
    with pytest.raises(ValueError, match="two classes, the 200 cases of val are 200 of a, 0 of b"):
        Temperature.fit(replace(said, truth=np.zeros(200, int)))
    assert json.loads(json.dumps(fitted.to_dict(), allow_nan=False))["fitted_on"] == "val"


def test_temperature_of_what_is_all_right_or_says_nothing():
    said = predicted(20)
    right = replace(said, probabilities=np.where(said.targets, 0.9, 0.1))
    assert Temperature.fit(right).value == 1
    assert "every validation case is right" in Temperature.fit(right).note
    wrong = replace(said, probabilities=np.where(said.targets, 0.1, 0.9))
    found = Temperature.fit(wrong)
    assert "say nothing" in found.note
    assert found.after < found.before


def test_operating_points_are_the_best_that_keep_the_promise():
    said = predicted(300, seed=1)
    curve = Curve.of(said)
    point = OperatingPoint.choose(said, SensitivityAtLeast(0.9))
    assert point.sensitivity >= 0.9
    assert point.specificity == curve.specificity[curve.sensitivity >= 0.9].max()
    point = OperatingPoint.choose(said, SpecificityAtLeast(0.95))
    assert point.specificity >= 0.95
    assert point.sensitivity == curve.sensitivity[curve.specificity >= 0.95].max()
    point = OperatingPoint.choose(said, Youden())
    assert point.sensitivity + point.specificity == (curve.sensitivity + curve.specificity).max()
    scores = OperatingScores.of(point, said)  # the cases that it was chosen on give the numbers that it carries
    assert scores.sensitivity.value == pytest.approx(point.sensitivity, abs=1e-12)
    assert scores.specificity.value == pytest.approx(point.specificity, abs=1e-12)


def test_operating_point_scores_equal_the_confusion_matrix():
    val, test = predicted(300, seed=1), predicted(250, seed=2, part="test")
    point = OperatingPoint.choose(val, SensitivityAtLeast(0.8))
    found = OperatingScores.of(point, test)
    called, ill = test.probabilities[:, 1] >= point.threshold, test.truth == 1
    assert found.sensitivity.value == called[ill].mean()
    assert found.specificity.value == (~called)[~ill].mean()
    assert found.positive_predictive_value.value == ill[called].mean()
    assert found.negative_predictive_value.value == (~ill)[~called].mean()
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["point"]["chosen_on"] == "val"
    lines = found.table().splitlines()
    assert lines[0].startswith("positive: b, at a probability of")
    assert lines[2].split()[0] == "sensitivity"
    assert len({len(line) for line in lines[1:]}) == 1


def test_nothing_is_chosen_on_test():
    val, test = predicted(300, seed=1), predicted(250, seed=2, part="test")
    for part in ("test", "train"):
        with pytest.raises(ValueError, match=f"chosen on validation, not on {part}"):
            OperatingPoint.choose(replace(test, part=part), Youden())
    point = OperatingPoint.choose(val, Youden())
    with pytest.raises(ValueError, match="chosen on validation, not on test"):
        replace(point, part="test")
    with pytest.raises(ValueError, match="on these very 300 cases"):
        OperatingScores.of(point, replace(val, part="test"))
    with pytest.raises(ValueError, match=r"at temperature 1, these probabilities have"):
        OperatingScores.of(point, Temperature.fit(val).apply(test))
    three = predicted(90, 3)
    with pytest.raises(ValueError, match="take one_against_rest"):
        OperatingPoint.choose(three, Youden())
    with pytest.raises(ValueError, match="is of 'b', these predictions of 'c'"):
        OperatingScores.of(OperatingPoint.choose(three.one_against_rest("b"), Youden()), three.one_against_rest("c"))


def test_rules_refuse_what_calls_all_cases_the_same():
    backwards = predicted(20)
    backwards = replace(backwards, probabilities=np.where(backwards.targets, 0.1, 0.9))
    for rule in (Youden(), SensitivityAtLeast(0.9), SpecificityAtLeast(0.9)):
        with pytest.raises(ValueError, match=r"no threshold separates|calling every case"):
            OperatingPoint.choose(backwards, rule)
    with pytest.raises(ValueError, match="not 95"):
        SensitivityAtLeast(95)


def test_test_set_openings_are_counted(tmp_path):
    record = openings_beside(tmp_path / "run1")
    said = predicted(part="test")
    assert record.count(said.fingerprint) == 0
    assert record.record(said.fingerprint, run="run1") == 1
    other = openings_beside(tmp_path / "run2")
    assert other.record(said.fingerprint, run="run2") == 2
    assert other.record(predicted(seed=9, part="test").fingerprint, run="run2") == 1
    assert [opening.run for opening in record.all()] == ["run1", "run2", "run2"]
    with Pool(8) as pool:
        pool.map(lambda at: record.record("many", run=str(at)), range(40))
    assert record.count("many") == 40
    with pytest.raises(ValueError, match="neither may be empty"):
        record.record(said.fingerprint, run="")
    with record.path.open("a") as file:
        file.write('{"fingerprint": "cut o')
    with pytest.raises(ValueError, match="line 44 of the record of test openings"):
        record.record(said.fingerprint, run="run1")


def tabled(sizes, *, least=10, extra=None):
    """A table of one site column whose sites have so many patients with two images each."""
    count = 2 * sum(sizes.values())
    said = predicted(count, part="test")
    groups = {"site": [site for site, size in sizes.items() for _ in range(2 * size)]}
    return SubgroupTable.of(said, groups | (extra or {}), AUROC(), bootstrap=QUICK, least_patients=least)


def hidden(table):
    return [row.group for row in table.rows if row.suppressed]


def test_small_groups_are_withheld_and_so_is_what_would_betray_them():
    assert hidden(tabled({"A": 50, "B": 40, "C": 30})) == []
    assert hidden(tabled({"A": 50, "B": 40, "C": 9})) == ["B", "C"]  # C is the whole less A and B
    assert hidden(tabled({"A": 50, "B": 40, "C": 9, "D": 8})) == ["C", "D"]  # 17 together, neither known
    assert hidden(tabled({"A": 50, "B": 40, "C": 2, "D": 3})) == ["B", "C", "D"]  # 5 together would be known
    assert hidden(tabled({"A": 50, "B": 9})) == ["A", "B"]
    table = tabled({"A": 50, "B": 40, "C": 9})
    told = json.dumps(table.to_dict(), allow_nan=False)
    assert {row["patients"] for row in json.loads(told)["rows"]} == {99, 50, None}
    row = next(row for row in table.rows if row.group == "C")
    assert (row.patients, row.images, row.prevalence, row.estimate) == (None, None, None, None)


def test_a_finer_attribute_does_not_betray_a_coarser_one():
    """Both sites of region South are given; North is B and a small C, and shown regions would give C away."""
    sizes = {"A": 30, "B": 40, "C": 9, "D": 30}
    region = {"A": "South", "D": "South", "B": "North", "C": "North"}
    table = tabled(sizes, extra={"region": [region[site] for site, size in sizes.items() for _ in range(2 * size)]})
    rows = {row.group: row for row in table.rows}
    assert rows["C"].suppressed
    shown = [name for name, row in rows.items() if not row.suppressed]
    # whatever is shown, C = North - B must not follow
    assert not {"North", "B"} <= set(shown)
    assert not {"South", "B"} <= set(shown)


def test_no_suppressed_group_follows_from_what_is_shown():
    """Every sum and difference of shown counts, over random tables of three attributes."""
    draw = np.random.default_rng(0)
    for _ in range(20):
        values = [draw.choice(4, 150, p=p) for p in ([0.5, 0.4, 0.06, 0.04], [0.3, 0.3, 0.37, 0.03])]
        values.append(values[0] * 4 + values[1])  # sites within regions, and both crossed
        members = np.array([column == group for column in values for group in np.unique(column)])
        attributes = np.array([at for at, column in enumerate(values) for _ in np.unique(column)])
        sizes = members.sum(1)
        withheld = suppress(members, attributes, sizes < 10, 10, np.count_nonzero)
        assert withheld[sizes < 10].all()
        shown = np.concatenate((np.ones((1, 150)), members[~withheld])).astype(float)
        rank = np.linalg.matrix_rank(shown)
        for row in members[withheld]:
            assert np.linalg.matrix_rank(np.concatenate((shown, row[None]))) == rank + 1


def test_prevalence_that_tells_of_few_patients_is_withheld():
    draw = np.random.default_rng(1)
    truth = np.concatenate((np.arange(100) < 40, np.arange(100) < 3, np.arange(100) < 30)).astype(int)
    said = SingleLabel.from_logits(
        truth + draw.normal(size=300),
        classes=("no", "yes"),
        truth=truth,
        cases=tuple(map(str, range(300))),
        patients=None,
        part="test",
    )
    table = SubgroupTable.of(said, {"site": ["A"] * 100 + ["B"] * 100 + ["C"] * 100}, AUROC(), bootstrap=QUICK)
    rows = {row.group: row for row in table.rows}
    assert rows["B"].prevalence is None  # three patients
    assert rows["C"].prevalence is None  # B's is the whole's less A's and C's
    assert rows["A"].prevalence == 0.4
    assert rows["B"].patients == 100


def test_subgroups_without_a_record_are_kept_and_a_lone_class_says_so():
    said = predicted(80, part="test")
    groups = {"sex": ["F"] * 40 + ["", None, math.nan, ""] * 10, "ill": ["yes" if one else "no" for one in said.truth]}
    table = SubgroupTable.of(said, groups, AUROC(), bootstrap=QUICK)
    rows = {(row.attribute, row.group): row for row in table.rows}
    assert rows["sex", "not recorded"].images == 40
    assert "all" in rows["ill", "yes"].estimate.reason
    lines = table.table().splitlines()
    assert lines[0].split() == ["attribute", "group", "patients", "images", "prevalence", "AUROC"]
    assert "fewer than 10 patients are suppressed" in lines[-1]
    with pytest.raises(ValueError, match="each of the 80 cases, there are 3"):
        SubgroupTable.of(said, {"sex": ["F"] * 3}, AUROC(), bootstrap=QUICK)
    with pytest.raises(ValueError, match="1 or more, not 0"):
        SubgroupTable.of(said, groups, AUROC(), bootstrap=QUICK, least_patients=0)


def test_bands_of_age():
    assert bands([39.9, 40, 64, 65, 90, math.nan], [40, 65]) == ["<40", "40–<65", "40–<65", "≥65", "≥65", ""]
    with pytest.raises(ValueError, match="must increase"):
        bands([1], [65, 40])


@pytest.mark.parametrize(
    ("said", "names"),
    [
        (predicted(120, part="test"), {"AUROC", "AUPRC", "F1", "kappa", "Brier score", "log loss"}),
        (predicted(150, 4, part="test", ordered=True), {"quadratic-weighted kappa", "balanced accuracy"}),
        (labelled(100, part="test"), {"AUROC", "F1", "accuracy"}),
    ],
)
def test_scores_of_every_task_go_to_json_and_text(said, names):
    scores = ClassificationScores.of(said, bootstrap=QUICK)
    assert names <= set(scores.overall)
    told = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert told["images"] == len(said.cases)
    assert told["overall"]["AUROC"]["interval"]["draws"] == 100
    for measure in standard_measures(said):
        assert scores.overall[measure.name].value == pytest.approx(measure.of(said), abs=1e-12)
    several = len(said.scored) > 1
    assert set(told["per_class"]) == (set(said.classes) if several else set())
    assert (told["patients"] is None) == (said.patients is None)
    assert ("image-level" in scores.table()) == (said.patients is None)
    assert (scores.confusion is None) == isinstance(said, MultiLabel)
    for line, name in zip(scores.table().splitlines()[2:], scores.overall, strict=False):
        assert line.startswith(name)


def test_scores_say_which_class_is_missing_and_refuse_a_single_one():
    said = predicted(150, 4, part="test")
    lacking = replace(said, truth=np.where(said.truth == 3, 0, said.truth))
    scores = ClassificationScores.of(lacking, bootstrap=QUICK)
    told = scores.to_dict()
    assert told["overall"]["AUROC"]["value"] is None
    assert "no case is of 'd'" in told["overall"]["AUROC"]["reason"]
    assert "interval" not in told["overall"]["AUROC"]
    assert told["per_class"]["a"]["AUROC"]["value"] is not None
    assert "no case is of 'd'" in scores.table()
    with pytest.raises(ValueError, match="150 of a, 0 of b, 0 of c, 0 of d"):
        ClassificationScores.of(replace(said, truth=np.zeros(150, int)), bootstrap=QUICK)


def test_strata_and_measures_do_not_depend_on_the_order_of_cases():
    said = predicted(100, 3, part="test")
    turned = said.select(np.random.default_rng(0).permutation(100))
    for one, other in itertools.zip_longest(
        QUICK.estimates(said, standard_measures(said)), QUICK.estimates(turned, standard_measures(turned))
    ):
        assert one.value == pytest.approx(other.value, abs=1e-12)
        assert one.interval.low == pytest.approx(other.interval.low, abs=1e-12, nan_ok=True)
        assert one.interval.known or "bias of bins" in one.interval.note
        assert not one.interval.known or one.interval.low <= one.value <= one.interval.high
