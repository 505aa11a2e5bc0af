"""What another sensor makes of the same ground: its bands, its pixels, its noise, and the air before it."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  (jsonargparse reads the annotations)
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from geomed.bands import SENTINEL2
from geomed.data.simulation.canopy import LEVEL2A

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

BLUE, TURBIDITY = 490.0, 1.3
"""Wavelength in nanometres at which haze is given, and the power with which it falls from there: the usual exponent of
continental aerosol (Ångström 1964, Tellus 16, 64-75)."""

REACH = 3.0
"""Standard deviations of the point spread after which nothing is added any more."""


def _refuse_outside(what: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also true for NaN
        raise ValueError(f"{what} must lie between {low:g} and {high:g}, not {value}; correct it")


@dataclass(frozen=True, kw_only=True)
class Response:
    """What the bands report where those of Sentinel-2 would report a reflectance.

    First ``crosstalk``, then ``gain * reflectance ** exponent + offset``. The usual values change nothing.
    """

    crosstalk: float = 0.0
    """Share of a band's light that comes from its spectral neighbours, half from each, 0 to 0.5. The outermost bands
    have one neighbour and take half the share, so that a grey ground stays grey and no light is lost."""

    exponent: float = 1.0
    """Of a response that is not linear, 0.5 to 2; of reflectances below 0 the sign is kept."""

    gains: Mapping[str, float] = field(default_factory=dict)
    """Factor on single bands, by name, 0.1 to 10; 1 of a band that is not named."""

    offsets: Mapping[str, float] = field(default_factory=dict)
    """Reflectance added to single bands, by name, -0.2 to 0.2; 0 of a band that is not named."""

    def __post_init__(self) -> None:
        """Refuse bands that do not exist and responses that no calibrated product has."""
        _refuse_outside("crosstalk", self.crosstalk, 0.0, 0.5)
        _refuse_outside("exponent", self.exponent, 0.5, 2.0)
        for what, table, low, high in (("gains", self.gains, 0.1, 10.0), ("offsets", self.offsets, -0.2, 0.2)):
            unknown = [band for band in table if band not in LEVEL2A]
            if unknown:
                raise ValueError(f"{what}: no band is called {', '.join(unknown)}; the bands are {', '.join(LEVEL2A)}")
            for band, value in table.items():
                _refuse_outside(f"{what} of {band}", value, low, high)

    def __call__(self, values: NDArray[np.float64], bands: Sequence[str]) -> NDArray[np.float64]:
        """What is reported, [C, H, W], for reflectances of that shape."""
        gains, offsets = (
            np.array([table.get(band, usual) for band in bands]).reshape(-1, 1, 1)
            for table, usual in ((self.gains, 1.0), (self.offsets, 0.0))
        )
        if self.crosstalk:
            values = np.einsum("oi,ihw->ohw", self.mixing(bands), values)
        if self.exponent != 1.0:
            values = np.sign(values) * np.abs(values) ** self.exponent
        return np.asarray(gains * values + offsets)

    def mixing(self, bands: Sequence[str]) -> NDArray[np.float64]:
        """Shares [bands out, bands in] of the crosstalk: symmetric, each row and each column sums to 1.

        Neighbours exchange equal shares, so that the matrix is 1 minus the graph Laplacian of the bands in order of
        wavelength.
        """
        order = sorted(range(len(bands)), key=lambda index: SENTINEL2[bands[index]].wavelength)
        mixing = np.eye(len(bands))
        for one, other in pairwise(order):
            for here, there in ((one, other), (other, one)):
                mixing[here, here] -= self.crosstalk / 2.0
                mixing[here, there] += self.crosstalk / 2.0
        return mixing


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """A sensor that sees what Sentinel-2 sees, otherwise: through haze, a lens, a detector and its electronics."""

    name: str
    """Part of folders' names; letters, digits, - and _."""

    response: Response = Response()
    """What its bands report."""

    pixels: int = 1
    """How many pixels of 10 m one side of its pixel covers, 1 to 30; it measures their mean."""

    blur: float = 0.0
    """Standard deviation of the Gaussian point spread, in its pixels, 0 to 2."""

    noise: float = 0.0
    """Standard deviation of the noise of each pixel and band, in reflectance, 0 to 0.1."""

    haze: float = 0.0
    """Reflectance that the air adds at 490 nm, -0.1 (corrected too much) to 0.2; less at longer wavelengths."""

    def __post_init__(self) -> None:
        """Refuse sensors that see nothing, and names that are no folders."""
        if not self.name or not all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in self.name):
            raise ValueError(f"a sensor's name becomes a folder: letters, digits, - and _ only, not {self.name!r}")
        if not (isinstance(self.pixels, int) and 1 <= self.pixels <= 30):
            raise ValueError(f"pixels is a count from 1 (10 m) to 30 (300 m), not {self.pixels}; correct it")
        _refuse_outside("blur", self.blur, 0.0, 2.0)
        _refuse_outside("noise", self.noise, 0.0, 0.1)
        _refuse_outside("haze", self.haze, -0.1, 0.2)

    def observe(
        self,
        values: NDArray[np.float32],
        valid: NDArray[np.bool_],
        *,
        bands: Sequence[str],
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """What this sensor reports of a ground, and where it saw all of a pixel.

        Args:
            values: reflectance [C, H, W] on pixels of 10 m.
            valid: where that is known, [H, W]; what is not known reaches no pixel, not even blurred.
            bands: names of the C bands, from ``LEVEL2A``; crosstalk is between those that are neighbours here.
            rng: source of the noise.

        Returns:
            values [C, H / pixels, W / pixels], 0 where not valid, and valid [H / pixels, W / pixels].

        Raises:
            ValueError: the shapes do not fit together, or no count of its pixels covers the ground.
        """
        if len(values) != len(bands) or values.shape[1:] != valid.shape:
            raise ValueError(
                f"values must be [C, H, W] of {len(bands)} bands ({', '.join(bands)}) and valid [H, W], not "
                f"{list(values.shape)} and {list(valid.shape)}"
            )
        if any(side % self.pixels for side in valid.shape):
            raise ValueError(
                f"pixels of {self.name} cover {self.pixels} x {self.pixels} of 10 m, which do not divide a ground of "
                f"{valid.shape[0]} x {valid.shape[1]}; cut it to a multiple"
            )
        wavelength = np.array([SENTINEL2[band].wavelength for band in bands]).reshape(-1, 1, 1)
        scene = np.where(valid, values, 0.0) + self.haze * (BLUE / wavelength) ** TURBIDITY
        if self.blur:
            scene = _blurred(scene, valid, self.blur * self.pixels)
        whole = np.asarray(_cells(valid, self.pixels).all(axis=(-3, -1)))
        reported = self.response(_cells(scene, self.pixels).mean(axis=(-3, -1)), bands)
        if self.noise:
            reported = reported + self.noise * rng.standard_normal(reported.shape)
        return np.where(whole, reported, 0.0).astype(np.float32), whole


def _cells(planes: NDArray[Any], side: int) -> NDArray[Any]:
    """[..., H, W] as [..., H / side, side, W / side, side]."""
    *others, height, width = planes.shape
    return planes.reshape(*others, height // side, side, width // side, side)


def _blurred(values: NDArray[np.float64], valid: NDArray[np.bool_], sigma: float) -> NDArray[np.float64]:
    """The mean of the valid pixels [C, H, W] around each, weighted by a Gaussian of ``sigma`` pixels."""
    weight = _smoothed(valid[None].astype(np.float64), sigma)
    return _smoothed(np.where(valid, values, 0.0), sigma) / np.maximum(weight, 1e-12)


def _smoothed(planes: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """[C, H, W] with 0 around it, convolved with a Gaussian along rows and columns."""
    reach = int(np.ceil(REACH * sigma))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (-2, -1):
        around = [(reach, reach) if axis == other - 3 else (0, 0) for other in range(3)]
        padded = np.moveaxis(np.pad(planes, around), axis, 0)
        length = planes.shape[axis]
        total = sum((tap * padded[start : start + length] for start, tap in enumerate(taps)), np.float64(0.0))
        planes = np.moveaxis(np.asarray(total), 0, axis)
    return planes


PLAIN = Sensor(name="plain")
"""Sentinel-2 as it is simulated: changes nothing."""

OTHER = Sensor(
    name="other",
    response=Response(
        crosstalk=0.3,
        exponent=0.85,
        gains={"B02": 1.15, "B03": 0.9, "B04": 1.1, "B07": 0.9, "B08": 0.8, "B8A": 0.8, "B11": 1.15, "B12": 1.25},
    ),
    pixels=2,
    blur=0.4,
    noise=0.008,
    haze=0.03,
)
"""A cheap sensor of 20 m, calibrated otherwise: wider bands, a bent response, a soft lens, noise, and haze left in."""
