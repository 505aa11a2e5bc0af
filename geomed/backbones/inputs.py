"""From physical units to what a network was trained on: band order, mean and standard deviation."""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003  (jsonargparse reads the annotations)

import torch
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.bands import SENTINEL2, band_name


class Inputs(nn.Module):
    """The bands that a backbone reads, in their order, and how they are normalised: (x - mean) / std.

    It belongs to the backbone and is saved with its weights, so that training and inference cannot disagree.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, bands: Sequence[str], mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        """Name the bands and, where they are not Sentinel-2's, their statistics.

        Args:
            bands: names in the order of the channels; Sentinel-2 aliases (B2, blue) are brought to B02.
            mean: of each band, in the unit of the source. None takes `geomed.bands.SENTINEL2`'s, in reflectance.
            std: likewise.

        Raises:
            ValueError: no bands, a band twice, statistics of another length, not positive, or unknown.
        """
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError("mean and std go together; give both or neither")
        self.bands = tuple(bands) if mean is not None else tuple(band_name(band) for band in bands)
        if not self.bands or len(set(self.bands)) != len(self.bands):
            raise ValueError(f"bands must be named, each once, not {', '.join(self.bands) or 'none'}")
        if mean is None or std is None:
            unknown = [band for band in self.bands if SENTINEL2[band].mean is None]
            if unknown:
                raise ValueError(f"no usual statistics are known of {', '.join(unknown)}; give mean and std")
            mean = [SENTINEL2[band].mean or 0.0 for band in self.bands]
            std = [SENTINEL2[band].std or 1.0 for band in self.bands]
        if not len(mean) == len(std) == len(self.bands) or min(std) <= 0:
            raise ValueError(
                f"{len(self.bands)} bands need as many means and positive stds, not {len(mean)} and {len(std)}"
                f" (smallest std {min(std, default=0)})"
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.get_default_dtype()))
        self.register_buffer("std", torch.tensor(std, dtype=torch.get_default_dtype()))

    def forward(self, values: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
        """Normalise; one mean and one std for each channel.

        Raises:
            ValueError: another number of channels than bands.
        """
        if values.shape[-3] != len(self.bands):
            raise ValueError(
                f"this backbone reads {len(self.bands)} bands ({', '.join(self.bands)}), not {values.shape[-3]}; "
                "give the source these bands in this order"
            )
        return (values - self.mean[:, None, None]) / self.std[:, None, None]
