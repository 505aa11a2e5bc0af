"""Scans in folders named by their class."""

import pytest
from fake_cohorts import picture
from PIL import Image

from geomed.data.case_ids import CaseIds
from geomed.data.folder_of_classes import FolderOfClasses
from geomed.data.rendition import Rendition
from geomed.evaluation.patient_splits import ByPatient, BySite


@pytest.fixture
def folder(tmp_path):
    for index in range(20):
        path = tmp_path / "set" / ("ill" if index // 2 % 2 else "healthy") / f"{index // 2}_{index % 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(index)).save(path)
    (tmp_path / "set" / "README.md").write_text("what it is")
    return tmp_path


def folder_source(folder, **given):
    usual = {
        "folder": str(folder / "set"),
        "patients": "([0-9]+)_",
        "by": ByPatient(fractions=(0.6, 0.2, 0.2)),
        "rendition": Rendition(size=16),
        "ids": CaseIds(key_file=str(folder / "key")),
    }
    return FolderOfClasses(**usual | given)


def test_a_folder_gives_classes_and_patients(folder):
    source = folder_source(folder)
    assert source.classes == ("healthy", "ill")
    assert len(source.cases) == 20
    assert len({case.patient for case in source.cases}) == 10
    assert "1 files that are no scans were left out" in source.summary
    assert len(source.split("train")) == 12
    graded = folder_source(folder, names=("ill", "healthy"), graded=True)
    assert graded.classes == ("ill", "healthy")
    assert graded.target.ordered


def test_a_folder_that_does_not_fit_is_refused(folder):
    with pytest.raises(ValueError, match=r"20 of 20 rows: the expression finds no patient in the path"):
        folder_source(folder, patients="(patient)").prepare()
    with pytest.raises(ValueError, match=r"10 of 20 rows: the folder is none of the classes ill"):
        folder_source(folder, names=("ill",)).prepare()
    with pytest.raises(ValueError, match="no scan lies in mild"):
        folder_source(folder, names=("ill", "healthy", "mild")).prepare()
    for given in (
        {"graded": True},
        {"patients": "[0-9]+"},
        {"patients": "("},
        {"parts": True},
        {"by": BySite(test=("a",))},
    ):
        with pytest.raises(ValueError, match=r"in `names`|one group|regular expression|set `parts`|knows no sites"):
            folder_source(folder, **given)
