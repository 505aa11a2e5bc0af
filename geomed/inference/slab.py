"""A slab of rows in which windows are blended: all that a scene of any height needs in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from geomed.inference.plan import Axis


class Slab:
    """Weighted sums of what the windows of one row of windows, and those above it, say, on the model's device.

    Rows of windows come from top to bottom. When one is complete, what no later row touches is given out, and the rest
    moves up.
    """

    def __init__(
        self, rows: Axis, columns: Axis, span: tuple[int, int], *, device: torch.device, gaps: bool = False
    ) -> None:
        """An empty slab.

        Args:
            rows: windows along rows.
            columns: windows along columns.
            span: those of the columns, [first, end), that will come.
            device: where to blend.
            gaps: whether a window may be left out although its pixels count: what the others say then counts more.
        """
        self._rows, self._columns = rows, columns
        self.left = columns.starts[span[0]]
        self.width = columns.starts[span[1] - 1] + columns.size - self.left
        self._down = torch.from_numpy(rows.weights).to(device)
        self._across = torch.from_numpy(columns.weights).to(device)
        self._device = device
        self._top = -1
        self._sums: Tensor | None = None
        self._weights = torch.zeros((rows.size, self.width), device=device) if gaps else None
        self._valid = torch.zeros((rows.size, self.width), dtype=torch.bool, device=device)

    def start(self, row: int) -> None:
        """Make room for a row of windows, the first one or the one after that given out last."""
        self._top = row

    def add(self, column: int, scores: Tensor) -> None:
        """Add what one window of the row says, [K, H, W] float32."""
        if self._sums is None:
            self._sums = torch.zeros((len(scores), self._rows.size, self.width), device=self._device)
        at = self._columns.starts[column] - self.left
        rows, columns = self._rows.counts[self._top], self._columns.counts[column]  # what is context only is left out
        weight = self._down[self._top, rows][:, None] * self._across[column, columns][None, :]
        here = (rows, slice(at + columns.start, at + columns.stop))
        self._sums[:, here[0], here[1]].addcmul_(scores[:, rows, columns], weight)
        if self._weights is not None:
            self._weights[here] += weight

    def see(self, first: int, valid: Tensor) -> None:
        """Note what was observed [H, W], from a column of the raster on."""
        at = first - self.left
        self._valid[:, at : at + valid.shape[1]] |= valid

    def give(self) -> tuple[Tensor | None, Tensor]:
        """Means [K, R, W] and validity [R, W] of the rows that this row of windows finishes; None: no window spoke.

        They are only good until ``advance``.
        """
        first, end = (self._rows.begins[self._top + step] - self._rows.starts[self._top] for step in (0, 1))
        sums = None if self._sums is None else self._sums[:, first:end]
        if sums is not None and self._weights is not None:
            sums = sums / self._weights[first:end].clamp_min(1e-12)
        return sums, self._valid[first:end]

    def advance(self) -> None:
        """Move up what the next row of windows shares with this one."""
        step = self._rows.starts[self._top + 1] - self._rows.starts[self._top]
        kept = self._rows.size - step
        for one in (self._valid, self._weights, self._sums):
            if one is not None:
                shared = one[..., step:, :]
                one[..., :kept, :] = shared if kept <= step else shared.clone()
                one[..., kept:, :] = 0
