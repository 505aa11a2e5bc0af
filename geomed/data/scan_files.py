"""Any file or folder that holds one scan, by its ending."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from geomed.io.scan import Scan

_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
DICOM = (".dcm", ".dicom", ".dic", ".ima")
"""Endings of DICOM, in lower case."""
NIFTI = (".nii", ".nii.gz")
"""Endings of NIfTI."""
ENDINGS = (*_PICTURES, *DICOM, *NIFTI)
"""Endings of the files that are read, in lower case."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What files do not say themselves."""

    orientation: str | None = None
    """Where columns, rows and slices of a volume are to lead, as "LPS": slices from the feet to the head; None: as each
    is stored, and volumes that are stored differently are refused."""

    unit: str = "grey"
    """What the values of a NIfTI are: "HU" for a CT."""

    modality: str | None = None
    """What DICOM files are that do not say it, as "OT"; None: they say it."""

    def recipe(self) -> dict[str, object]:
        """All of it in JSON's types."""
        return asdict(self)

    def read(self, path: Path, *, named: str) -> Scan:
        """Read a picture, a DICOM file, a NIfTI volume, or a folder with the slices of one DICOM series.

        Args:
            path: the file or folder.
            named: how errors call it.

        Raises:
            ValueError: it cannot be read, or nothing is known of its ending.
        """
        scan = self._read(path, named)
        if self.orientation is None or len(scan.shape) == 2:
            return scan
        from geomed.io.volume_grid import oriented

        return oriented(scan, self.orientation)

    def _read(self, path: Path, named: str) -> Scan:
        name = path.name.lower()
        if path.is_dir():
            from geomed.io.dicom import read_series

            return read_series(path, modality=self.modality, named=named)
        if name.endswith(DICOM):
            from geomed.io.dicom import read_dicom

            return read_dicom(path, modality=self.modality, named=named)
        if name.endswith(NIFTI):
            from geomed.io.nifti import read_nifti

            return read_nifti(path, unit=self.unit, named=named)
        if name.endswith(_PICTURES):
            from geomed.io.picture import read_picture

            return read_picture(path, named=named)
        raise ValueError(f"{named}: its ending is none of {', '.join(ENDINGS)}; give a file of one of these kinds")
