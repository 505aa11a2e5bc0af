"""How many directions features really use: what tells a collapsed network from a learning one without labels."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float  # noqa: TC002  (annotations stay readable at run time)
from torch import Tensor


def effective_rank(features: Float[Tensor, "n d"] | Float[np.ndarray, "n d"]) -> float:
    """RankMe: exp of the entropy of the normalised singular values (Garrido et al., ICML 2023, eq. 1 and 2).

    Between 1, where all rows are multiples of one, and min(n, d), where all directions are equally strong; 0 where
    there is nothing but zeros. It does not change with the scale, nor with a rotation. As in the paper the features are
    *not* centred: of rows that are all alike up to noise, centring would leave the noise, which has full rank. The
    paper adds 1e-7 to each share against log 0; here 0 log 0 = 0, and everything is in float64.

    Args:
        features: one row for each image, of any floating type and on any device.

    Raises:
        ValueError: the features are not a matrix of finite numbers with at least one row.
    """
    strengths = torch.linalg.svdvals(_matrix(features))
    total = strengths.sum()
    if not total:
        return 0.0
    shares = strengths / total
    return float(torch.special.entr(shares).sum().exp())


def spread(features: Float[Tensor, "n d"] | Float[np.ndarray, "n d"]) -> float:
    """How far the directions of the rows are apart: 1 where evenly around 0, 0 where all rows point the same way.

    The standard deviation over the rows of each channel of the l2-normalised features, averaged over channels, times
    sqrt(d) (Chen and He, CVPR 2021, section 4.1). With the deviation of the rows at hand (divided by n) it never
    exceeds 1. A row of zeros stays one.

    Args:
        features: as for the rank.

    Raises:
        ValueError: likewise.
    """
    rows = _matrix(features)
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    return float(rows.std(dim=0, correction=0).mean() * rows.shape[1] ** 0.5)


def _matrix(features: Tensor | np.ndarray) -> Tensor:
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(
            f"features must be [n, d], one row for each image, not {tuple(features.shape)}; pool the tokens of an image"
        )
    rows = features.detach() if isinstance(features, Tensor) else torch.from_numpy(np.ascontiguousarray(features))
    rows = rows.to("cpu", torch.float64)
    finite = rows.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(
            f"features must be finite, {int((~finite).sum())} of {len(rows)} rows are not; look for what became NaN or "
            "infinite in the network or in its input"
        )
    return rows
