"""Splits by patient and by site: nobody on two sides, every class where it belongs."""

import itertools
from collections import Counter

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from geomed.evaluation.patient_splits import (
    OPTIMISTIC,
    AllIn,
    ByMark,
    ByPatient,
    ByPatientFold,
    BySite,
    Case,
    CaseDivision,
    CaseSplit,
    divide_cases,
    refuse_shared,
)
from geomed.evaluation.stratification import groups_of, stratify

CLASSES = ("healthy", "mild", "severe")


def cohort(patients=120, seed=0, *, sites=4):
    """Several images of each patient, mostly of one class, one site for each."""
    draw = np.random.default_rng(seed)
    cases = []
    for number in range(patients):
        usual = int(draw.choice(3, p=(0.7, 0.22, 0.08)))
        for _ in range(int(draw.integers(1, 7))):
            label = usual if draw.random() < 0.8 else int(draw.integers(3))
            cases.append(Case(patient=f"p{number}", labels=(label,), site=f"site {number % sites}"))
    return cases


def named(patient):
    return f"#{abs(hash(patient)) % 1000}"


def divide(split, cases, *, image_level=False, classes=CLASSES):
    return divide_cases(split, cases, classes, image_level=image_level, name=named)


@pytest.mark.parametrize(
    "split",
    [
        ByPatient(),
        ByPatient(fractions=(0.4, 0.3, 0.3), seed=3),
        ByPatientFold(folds=4, fold=2, val_fraction=0.2),
        BySite(test=("site 1",)),
        BySite(test=("site 1", "site 3"), val=("site 0",)),
    ],
)
def test_no_patient_is_in_two_parts_and_every_case_in_one(split):
    cases = cohort()
    division = divide(split, cases)
    patients = [{cases[index].patient for index in division.part(part)} for part in ("train", "val", "test")]
    assert all(not a & b for a, b in itertools.combinations(patients, 2))
    assert sorted([*division.train, *division.val, *division.test]) == list(range(len(cases)))
    assert not division.image_level
    assert division.predict == division.test


def test_each_class_has_its_share_in_each_part():
    cases = cohort(300)
    division = divide(ByPatient(fractions=(0.6, 0.2, 0.2)), cases)
    totals = Counter(case.labels[0] for case in cases)
    for part, fraction in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        found = Counter(cases[index].labels[0] for index in division.part(part))
        for label, total in totals.items():
            assert abs(found[label] / total - fraction) < 0.02
        assert abs(len(division.part(part)) / len(cases) - fraction) < 0.02


def test_folds_are_as_even_as_those_of_scikit_learn():
    ours, theirs = [], []
    for seed in range(4):
        cases = cohort(90, seed)
        labels = np.array([case.labels[0] for case in cases])
        groups = [case.patient for case in cases]
        totals = np.bincount(labels, minlength=3)

        def spread(folds, labels=labels, totals=totals):
            return np.std([np.bincount(labels[list(fold)], minlength=3) / totals for fold in folds], axis=0).mean()

        ours.append(spread(stratify(cases, (0.2,) * 5, seed=seed)))
        sklearn = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(labels, labels, groups)
        theirs.append(spread([test for _, test in sklearn]))
    assert np.mean(ours) <= np.mean(theirs)


def test_folds_cover_everybody_once():
    cases = cohort(40)
    tests = [divide(ByPatientFold(folds=5, fold=fold), cases).test for fold in range(5)]
    assert sorted(itertools.chain(*tests)) == list(range(len(cases)))


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    cases = cohort()
    assert divide(ByPatient(seed=1), cases) == divide(ByPatient(seed=1), cases)
    assert divide(ByPatient(seed=1), cases) != divide(ByPatient(seed=2), cases)


def test_several_labels_of_one_image_are_shared_out_too():
    draw = np.random.default_rng(0)
    cases = [
        Case(patient=f"p{i // 3}", labels=tuple(np.flatnonzero(draw.random(3) < (0.5, 0.2, 0.1)).tolist()))
        for i in range(600)
    ]
    division = divide(ByPatient(fractions=(0.5, 0.25, 0.25)), cases)
    rare = [sum(2 in cases[index].labels for index in division.part(part)) for part in ("train", "val", "test")]
    assert abs(rare[0] / sum(rare) - 0.5) < 0.05


def test_look_alikes_of_several_patients_stay_together():
    cases = [Case(patient=f"p{i}", labels=(i % 2,), group=0 if i in {0, 7, 12} else None) for i in range(40)]
    assert len(set(groups_of(cases)[[0, 7, 12]].tolist())) == 1
    division = divide(ByPatient(), cases, classes=("a", "b"))
    assert sum(bool({0, 7, 12} & set(division.part(part))) for part in ("train", "val", "test")) == 1


def test_a_part_with_a_fraction_gets_somebody_even_of_few():
    cases = [Case(patient=f"p{i // 4}", labels=(i % 2,)) for i in range(12)]
    assert all(stratify(cases, (0.9, 0.05, 0.05), seed=0))
    with pytest.raises(ValueError, match="3 patients or groups that stay together are too few for 4 parts"):
        stratify(cases, (0.25,) * 4, seed=0)


class Leaky(CaseSplit):
    def divide(self, cases):
        return CaseDivision(train=(0, 1, 2, 3), val=(4, 5), test=(6, 7))


def test_a_patient_in_two_parts_is_refused_and_called_by_a_harmless_name():
    cases = [Case(patient=name, labels=(i % 2,)) for i, name in enumerate(("DOE", "B", "C", "D", "DOE", "E", "F", "G"))]
    with pytest.raises(
        ValueError, match=r"train and val share 1 patients: #\d+; a patient belongs to one part"
    ) as caught:
        divide(Leaky(), cases, classes=("a", "b"))
    assert "DOE" not in str(caught.value)


def test_a_case_in_two_parts_is_refused():
    cases = [Case(patient=f"p{i}", labels=(i % 2,)) for i in range(4)]
    with pytest.raises(ValueError, match="train and test share 2 cases"):
        refuse_shared(CaseDivision(train=(0, 1, 2), test=(1, 2, 3)), cases, name=named)


def test_without_patients_it_must_be_said_and_is_stamped():
    cases = [Case(patient=None, labels=(i % 2,)) for i in range(20)]
    with pytest.raises(ValueError, match=r"20 of 20 cases have no patient.*`patients: none`"):
        divide(ByPatient(), cases, classes=("a", "b"))
    division = divide(ByPatient(), cases, image_level=True, classes=("a", "b"))
    assert division.image_level
    assert OPTIMISTIC in division.summary(cases, ("a", "b"))
    with pytest.raises(ValueError, match="20 cases have one"):
        divide(ByPatient(), [Case(patient="x", labels=(0,))] * 20, image_level=True)


def test_one_missing_patient_is_refused():
    cases = [*cohort(10), Case(patient=None, labels=(0,))]
    with pytest.raises(ValueError, match=r"1 of \d+ cases have no patient"):
        divide(ByPatient(), cases)


def test_marks_of_a_table_are_kept_and_checked():
    marks = ("train", "train", "train", "dev", "dev", "test", "test", "?")
    cases = [Case(patient=f"p{i}", labels=(i % 2,), mark=mark) for i, mark in enumerate(marks)]
    division = divide(ByMark(val=("dev",), unused=("?",)), cases, classes=("a", "b"))
    assert (division.train, division.val, division.test) == ((0, 1, 2), (3, 4), (5, 6))
    with pytest.raises(
        ValueError, match="3 of 8 cases have no mark in the split column, or another than test, train, val"
    ):
        divide(ByMark(), cases, classes=("a", "b"))


def test_one_site_is_left_out_whole():
    cases = cohort()
    division = divide(BySite(test=("site 2",)), cases)
    assert {cases[i].site for i in division.test} == {"site 2"}
    assert "site 2" not in {cases[i].site for i in (*division.train, *division.val)}
    with pytest.raises(ValueError, match="1 of the named sites have no case, the table has 4 sites"):
        divide(BySite(test=("elsewhere",)), cases)


def test_a_patient_of_two_sites_is_refused():
    cases = [*cohort(), Case(patient="p1", labels=(0,), site="site 2")]
    with pytest.raises(ValueError, match="share 1 patients"):
        divide(BySite(test=("site 2",), val=("site 1",)), cases)


def test_one_class_only_is_refused():
    with pytest.raises(ValueError, match=r"train has \d+ cases of healthy only"):
        divide(ByPatient(), [Case(patient=f"p{i}", labels=(0,)) for i in range(30)])


def test_train_needs_every_class_and_a_test_without_one_is_told():
    cases = [Case(patient=f"p{i}", labels=(i % 2,), mark="train" if i < 10 else "test") for i in range(20)]
    cases.append(Case(patient="rare", labels=(2,), mark="train"))
    division = divide(ByMark(), cases)
    assert "test has no case of severe: nothing can be said of it there" in division.summary(cases, CLASSES)
    cases[-1] = Case(patient="rare", labels=(2,), mark="test")
    with pytest.raises(ValueError, match="train has no case of severe"):
        divide(ByMark(), cases)


def test_an_external_test_set_is_one_part():
    cases = cohort(20)
    division = divide(AllIn(part="test"), cases)
    assert division.test == division.predict == tuple(range(len(cases)))
    assert not division.train


def test_the_counts_are_told_part_by_part():
    cases = cohort(50)
    division = divide(ByPatient(), cases)
    table = division.counts(cases, CLASSES)
    assert sum(row["images"] for row in table.values()) == len(cases)
    assert sum(row["patients"] for row in table.values()) == 50
    summary = division.summary(cases, CLASSES)
    assert "no patient is in two of train, val and test" in summary
    assert f"train: images {len(division.train)}, patients " in summary


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (lambda: ByPatient(fractions=(0.8, 0.2, 0.2)), "sum to at most 1"),
        (lambda: ByPatientFold(folds=5, fold=5), "from 0 to folds - 1"),
        (lambda: ByPatientFold(val_fraction=1), "from 0 to below 1"),
        (lambda: BySite(test=()), "needs test sites"),
        (lambda: BySite(test=("a",), val=("a",)), "not in val as well"),
    ],
)
def test_rules_that_cannot_be_are_refused_at_once(split, message):
    with pytest.raises(ValueError, match=message):
        split()


def test_ten_thousand_patients_take_no_time():
    cases = [Case(patient=f"p{i // 3}", labels=(i % 3,)) for i in range(30_000)]
    assert len(stratify(cases, (0.7, 0.1, 0.2), seed=0)[1]) == pytest.approx(3000, abs=10)
