"""Laws of the simulated cohort: what is drawn, who the patients are, and the files that they become."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jsonargparse import auto_cli
from PIL import Image
from sklearn.metrics import roc_auc_score

from geomed.data.case_ids import CaseIds
from geomed.data.rendition import Rendition
from geomed.data.simulated_cohort import COLUMNS, REFERRAL, SimulatedCohort
from geomed.data.simulation.cohort import GRADES, HOSPITAL, MOBILE, REFERABLE, SCREENING, Site, photographs
from geomed.data.targets import OneOf
from geomed.evaluation.patient_splits import ByPatient, BySite

SMALL = tuple(replace(site, patients=count) for site, count in ((SCREENING, 24), (MOBILE, 12), (HOSPITAL, 12)))


@pytest.fixture
def cohort(tmp_path):
    def build(**fields):
        given = {"sites": SMALL, "by": ByPatient(fractions=(0.6, 0.2, 0.2)), "size": 32} | fields
        return SimulatedCohort(
            root=str(tmp_path / "cohort"),
            ids=CaseIds(key_file=str(tmp_path / "key")),
            rendition=Rendition(size=32, colour=True),
            **given,
        )

    return build


@pytest.fixture(scope="module")
def many():
    """The pictures of a site with many patients, small."""
    return list(photographs(replace(SCREENING, patients=220), size=32, disagreement=0.0, seed=3))


def rows(cohort):
    with (Path(cohort.root) / "table.csv").open(newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def test_the_table_is_read_like_anybodys(cohort):
    made = cohort()
    made.prepare()
    table = rows(made)
    assert tuple(table[0]) == COLUMNS
    assert len(table) == len(made.cases) == sum(len(made.split(part)) for part in ("train", "val", "test"))
    assert made.classes == GRADES
    assert made.target.ordered
    for case, row in zip(made.cases, table, strict=True):
        assert case.labels == (int(row["grade"]),)
        assert (case.patient, case.site, case.side) == (row["patient_id"], row["site"], row["eye"])
        assert int(row["referable"]) == (int(row["grade"]) >= REFERABLE)
    sample = made.split("test")[0]
    assert sample["values"].shape == (3, 32, 32)
    kept = np.asarray(Image.open(made.cases[int(sample["case"])].path))
    assert np.array_equal(sample["values"].permute(1, 2, 0).numpy(), kept)


def test_patients_have_one_to_four_pictures_in_one_part(cohort):
    made = cohort()
    counts = {}
    made.prepare()
    for case in made.cases:
        counts[case.patient] = counts.get(case.patient, 0) + 1
    assert set(counts.values()) == {1, 2, 3, 4}
    assert len(counts) == sum(site.patients for site in SMALL)
    assert "no patient is in two of train, val and test" in made.summary


def test_the_binary_label_and_whole_sites(cohort):
    made = cohort(labels=REFERRAL, by=BySite(test=("hospital",), val=("mobile",)))
    made.prepare()
    assert made.classes == ("healthy", "referable")
    assert {made.cases[index].site for index in made.division.test} == {"hospital"}


def test_the_same_seed_gives_the_same_pictures_whatever_other_sites_there_are(cohort):
    first = cohort()
    first.prepare()
    again = {shot.file: shot.pixels for shot in photographs(SMALL[2], size=32, disagreement=0.05, seed=0)}
    for case in first.cases:
        if case.site == "hospital":
            assert np.array_equal(np.asarray(Image.open(case.path)), again[case.path.name])
    other = next(photographs(SMALL[2], size=32, disagreement=0.05, seed=1))
    assert not np.array_equal(other.pixels, again[other.file])


def test_files_are_kept_until_a_parameter_changes(cohort):
    made = cohort()
    made.prepare()
    stamp = made.cases[0].path.stat().st_mtime_ns
    cohort().prepare()
    assert made.cases[0].path.stat().st_mtime_ns == stamp
    cohort(seed=1).prepare()
    assert made.cases[0].path.stat().st_mtime_ns != stamp
    assert json.loads((made.cases[0].path.parents[1] / "simulation.json").read_text())["parameters"]["seed"] == 1


def test_a_folder_of_something_else_is_left_alone(cohort, tmp_path):
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="does not say that it was simulated"):
        cohort().prepare()
    assert (tmp_path / "cohort" / "mine.txt").exists()


def test_brightness_does_not_tell_the_grade(many):
    ill = np.array([shot.grade >= REFERABLE for shot in many])
    for of in (np.mean, np.std):
        for channel in range(3):
            seen = np.array([of(shot.pixels[..., channel]) for shot in many])
            assert 0.3 < roc_auc_score(ill, seen) < 0.7


def test_lesions_tell_the_grade_and_age_a_little(many):
    """Dark spots that are red, as blood is and pigment is not, relative to their surroundings."""
    grade = np.array([shot.grade for shot in many])

    def bloody(pixels):
        red, green = (pixels[..., channel].astype(float) for channel in (0, 1))
        near = [sum(np.roll(one, shift, axis) for axis in (0, 1) for shift in (-3, 3)) / 4 for one in (red, green)]
        inside = np.hypot(*(np.mgrid[0:32, 0:32] - 15.5)) < 13
        return np.mean(((red < 0.8 * near[0]) & (green < 0.5 * near[1]))[inside])

    spots = np.array([bloody(shot.pixels) for shot in many])
    means = [spots[grade == number].mean() for number in range(5)]
    assert means == sorted(means)
    assert roc_auc_score(grade >= REFERABLE, spots) > 0.8
    assert 0.5 < roc_auc_score(grade >= REFERABLE, [shot.age for shot in many]) < 0.75


def test_most_are_healthy_and_hospitals_see_more_of_the_ill(many):
    share = np.bincount([shot.grade for shot in many], minlength=5) / len(many)
    assert share[0] == max(share)
    assert share[4] < 0.1
    ill = [shot.grade >= REFERABLE for shot in photographs(HOSPITAL, size=32, disagreement=0.0, seed=3)]
    assert np.mean(ill) > 1.3 * share[REFERABLE:].sum()


def test_sites_differ_in_colour():
    def seen(site):
        pixels = np.stack([s.pixels for s in photographs(replace(site, patients=8), size=48, disagreement=0, seed=0)])
        red, green, _ = pixels[:, 12:-12, 12:-12].astype(float).mean((0, 1, 2))
        return green / red

    green, green_mobile, green_hospital = map(seen, (SCREENING, MOBILE, HOSPITAL))
    assert green_mobile > 1.1 * green
    assert green_hospital < 0.9 * green


def test_the_optic_disc_is_on_the_nose_side():
    for shot in photographs(replace(SCREENING, patients=12), size=48, disagreement=0, seed=0):
        across = shot.pixels[12:36, :, 1].astype(float).max(0)
        assert (across[26:].max() > across[:22].max()) == (shot.eye == "right") or shot.grade > 1


def test_what_cannot_be_simulated_is_refused(cohort):
    for fields, rule in (
        ({"sites": ()}, "at least one"),
        ({"sites": (SCREENING, SCREENING)}, "differ"),
        ({"size": 16}, "at least 32"),
        ({"seed": -1}, "0 or more"),
        ({"disagreement": 0.9}, "0 to 0.5"),
        ({"labels": OneOf(legend=REFERRAL.legend, column="diagnosis")}, "no column diagnosis"),
    ):
        with pytest.raises(ValueError, match=rule):
            cohort(**fields)
    with pytest.raises(ValueError, match="set colour"):
        SimulatedCohort(by=ByPatient(), rendition=Rendition(size=32))
    for fields, rule in (
        ({"name": "a/b"}, "letters"),
        ({"name": "a", "patients": 0}, "at least 1 patient"),
        ({"name": "a", "tint": (9.0, 1.0, 1.0)}, "tint"),
        ({"name": "a", "blur": -1.0}, "blur"),
    ):
        with pytest.raises(ValueError, match=rule):
            Site(**fields)


def test_a_config_builds_it(tmp_path):
    (tmp_path / "source.yaml").write_text(
        "source:\n"
        "  class_path: geomed.data.simulated_cohort.SimulatedCohort\n"
        "  init_args:\n"
        "    by: {class_path: geomed.evaluation.patient_splits.ByPatient}\n"
        "    rendition: {size: 32, colour: true}\n"
        "    sites: [{name: village, patients: 5, tint: [1.0, 0.9, 1.0]}]\n"
    )

    def build(source: SimulatedCohort):
        return source

    built = auto_cli(build, args=["--config", str(tmp_path / "source.yaml")])
    assert built.sites == (Site(name="village", patients=5, tint=(1.0, 0.9, 1.0)),)
