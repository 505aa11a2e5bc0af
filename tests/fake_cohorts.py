"""Tiny cohorts of scans, written where a test wants them."""

import nibabel
import numpy as np
import pytest
from PIL import Image

from geomed.data.area import Legend
from geomed.data.case_ids import CaseIds
from geomed.data.rendition import Rendition
from geomed.data.scan_table import ScanTable
from geomed.data.targets import OneOf
from geomed.evaluation.patient_splits import ByPatient

LEGEND = Legend(classes={"healthy": [0], "ill": [1, "yes"]}, ignore=["?"])
HEADER = ("path", "label", "patient_id", "site", "eye", "sex", "age", "part")


def picture(seed, *, colour=False, side=40):
    shape = (10, 10, 3) if colour else (10, 10)
    coarse = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side // 2), Image.Resampling.BICUBIC))


def rows(count=24):
    """Two images of each patient."""
    return [
        [
            f"images/DOE_JANE_{i}.png",
            str(i // 2 % 2),
            f"SECRET-{i // 2}",
            f"site {i // 2 % 3}",
            "left",
            "f",
            "63",
            "train",
        ]
        for i in range(count)
    ]


class Made:
    """A table in a folder and what a source of it needs."""

    def __init__(self, folder):
        self.folder, self.rows, self.header = folder, rows(), HEADER
        (folder / "images").mkdir()
        for index, row in enumerate(self.rows):
            Image.fromarray(picture(index)).save(folder / row[0])

    def source(self, **given):
        lines = [",".join(row) for row in ([self.header] if self.header else []) + self.rows]
        (self.folder / "table.csv").write_text("\n".join(lines) + "\n")
        usual = {
            "table": str(self.folder / "table.csv"),
            "labels": OneOf(legend=LEGEND),
            "by": ByPatient(fractions=(0.5, 0.25, 0.25)),
            "rendition": Rendition(size=16),
            "ids": CaseIds(key_file=str(self.folder / "key")),
        }
        return ScanTable(**usual | given)

    def refused(self, match, **given):
        source = self.source(**given)
        with pytest.raises(ValueError, match=match) as caught:
            source.prepare()
        message = str(caught.value)
        for secret in ("DOE", "JANE", "SECRET", ".png", str(self.folder)):
            assert secret not in message
        assert caught.value.__cause__ is None
        return message, source


def nifti(path, values, *, turned=False):
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    if turned:
        affine[0, 0] = -1
    nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), affine), path)


def volume(seed, slices=10):
    """HU [S, H, W] in which slice s has the value 10 s in its middle."""
    values = np.random.default_rng(seed).integers(-900, -500, (slices, 20, 24)).astype(np.int16)
    values[:, 8:12, 8:16] = 10 * np.arange(slices)[:, None, None]
    return values
