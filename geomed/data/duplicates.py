"""Images that are the same, or look the same: found by their pixels, whatever their names and files."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from geomed.evaluation.splits import PARTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from geomed.evaluation.patient_splits import CaseDivision

SIDE = 32
"""Side of the thumbnail by which images are compared."""

PRINT = np.dtype([("pixels", "V16"), ("bits", "<u8"), ("thumbnail", "u1", (SIDE, SIDE))])
"""What is kept of an image to find it again: a digest of its pixels, a perceptual hash, a thumbnail."""

_CHUNK = 2048  # rows of the table of distances that is in memory at once
_SHOWN = 5  # examples in a message
_COSINES = np.cos(np.pi / SIDE * (np.arange(SIDE) + 0.5) * np.arange(8)[:, None])  # DCT-II, the eight lowest


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """What counts as the same image, and what is done about it.

    Identical pixels are one image. Images whose perceptual hashes are close are compared by the correlation of their
    thumbnails. Both steps are needed: among chest radiographs, which are all alike, hashes of different patients come
    as close as 4 of 64 bits, and thumbnails of different patients correlate by 0.9.

    The hash is of the lowest 8 x 8 frequencies of the thumbnail, each compared with their median (Zauner,
    "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2.1).
    """

    bits: int | None = 8
    """Bits of 64 by which the hashes of two look-alikes may differ; None: only identical images are looked for."""

    correlation: float = 0.95
    """Least correlation of the thumbnails of two look-alikes."""

    together: bool = False
    """Images that look the same go into one part with the patients that they are of, as if these were one patient; only
    a split that draws patients can do so. Otherwise look-alikes in two parts are refused."""

    accepted: str | None = None
    """A written reason to go on although look-alikes are in two parts; it stands in the summary."""

    contradictions: str | None = None
    """A written reason to go on although one image has several labels; it stands in the summary."""

    def __post_init__(self) -> None:
        """Refuse distances that are none and reasons that are empty."""
        if self.bits is not None and not 0 <= self.bits <= 16:
            raise ValueError(
                f"bits counts from 0 to 16 of 64, not {self.bits}: 32 is what two unrelated images have; correct it"
            )
        if not 0 < self.correlation <= 1:
            raise ValueError(f"correlation must be above 0 and at most 1, not {self.correlation}; correct it")
        for reason in (self.accepted, self.contradictions):
            if reason is not None and len(reason.split()) < 2:
                raise ValueError("to go on with duplicates needs a reason in words; write one or fix the data")


@dataclass(frozen=True, kw_only=True)
class LookAlikes:
    """Images that are the same or look the same."""

    same: tuple[tuple[int, ...], ...] = ()
    """Indices of images with identical pixels, ascending; groups of two or more."""

    near: tuple[tuple[int, int], ...] = ()
    """Pairs of images that look the same and are not identical; of identical ones the first stands for all."""

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Everything that hangs together by looks, ascending."""
        above: dict[int, int] = {}

        def root(index: int) -> int:
            while above.setdefault(index, index) != index:
                above[index] = above[above[index]]
                index = above[index]
            return index

        for one, *others in (*self.same, *self.near):
            for other in others:
                above[root(other)] = root(one)
        found = defaultdict(list)
        for index in sorted(above):
            found[root(index)].append(index)
        return tuple(sorted(tuple(group) for group in found.values()))

    def contradictory(self, labels: Sequence[object]) -> tuple[tuple[int, ...], ...]:
        """The identical images whose labels differ."""
        return tuple(group for group in self.same if len({labels[index] for index in group}) > 1)

    def between(self, first: Sequence[int], second: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Pairs of which one image is in the first part and the other in the second."""
        one, other = set(first), set(second)
        twins = {group[0]: group for group in self.same}
        for group in self.same:
            yield from ((a, b) for a in group if a in one for b in group if b in other)
        for left, right in self.near:
            for a in twins.get(left, (left,)):
                for b in twins.get(right, (right,)):
                    if a in one and b in other:
                        yield a, b
                    elif b in one and a in other:
                        yield b, a


def fingerprint(values: NDArray[np.generic], *, colour: bool = False, looks: bool = True) -> NDArray[np.void]:
    """What is kept of an image to find it again.

    Args:
        values: [H, W], or of a volume [S, H, W], of which the mean of the slices is seen. The digest is of type, shape
            and every pixel, so that a PNG and a TIFF of the same image have the same.
        colour: there is a last axis of three colours.
        looks: whether look-alikes are wanted too; without it there is only the digest.
    """
    digest = hashlib.blake2b(f"{values.dtype.name} {values.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(values).data)
    record = np.zeros((), dtype=PRINT)
    record["pixels"] = digest.digest()
    if looks:
        seen = _thumbnail(values, colour=colour)
        record["bits"], record["thumbnail"] = _hash(seen), seen
    return record[()]


def look_alikes(
    prints: NDArray[np.void],
    rule: Duplicates,
    *,
    embed: Callable[[Sequence[int]], NDArray[np.floating]] | None = None,
    cosine: float = 0.98,
) -> LookAlikes:
    """Find images that are the same or look the same.

    Args:
        prints: of every image, type ``PRINT``.
        rule: what counts as the same.
        embed: indices → one vector each, from any network. With it a pair of look-alikes also needs vectors as close
            as ``cosine``, and the hash may be looser.
        cosine: least cosine between two vectors.
    """
    by_pixels = defaultdict(list)
    for index, pixels in enumerate(prints["pixels"].tolist()):
        by_pixels[pixels].append(index)
    same = tuple(tuple(group) for group in by_pixels.values() if len(group) > 1)
    if rule.bits is None or len(by_pixels) < 2:
        return LookAlikes(same=same)
    first = np.array([group[0] for group in by_pixels.values()])
    pairs = first[_close(prints["bits"][first], rule.bits)]
    pairs = pairs[_correlation(prints["thumbnail"], pairs) >= rule.correlation]
    if embed is not None and len(pairs):
        asked, where = np.unique(pairs, return_inverse=True)
        vectors = np.asarray(embed(asked.tolist()), dtype=np.float64)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        left, right = where.reshape(pairs.shape).T
        pairs = pairs[(vectors[left] * vectors[right]).sum(axis=1) >= cosine]
    return LookAlikes(same=same, near=tuple((int(a), int(b)) for a, b in pairs))


def refuse_contradictions(
    found: LookAlikes, labels: Sequence[object], rule: Duplicates, name: Callable[[int], str]
) -> tuple[str, ...]:
    """Notes about identical images, and the refusal of those that have several labels.

    Raises:
        ValueError: an image has several labels, and no reason to go on is given.
    """
    notes = []
    doubled = sum(len(group) - 1 for group in found.same)
    if doubled or found.near:
        differ = sum(labels[a] != labels[b] for a, b in found.near)
        notes.append(
            f"look-alikes: {doubled} images repeat another pixel by pixel, {len(found.near)} pairs look the same, "
            f"{differ} of these have different labels"
        )
    wrong = found.contradictory(labels)
    if wrong:
        shown = "; ".join(" = ".join(name(index) for index in group) for group in wrong[:_SHOWN])
        told = f"{len(wrong)} images stand in the set with several labels: {shown}{' …' if len(wrong) > _SHOWN else ''}"
        if rule.contradictions is None:
            raise ValueError(f"{told}. Correct the labels or take them out, or write in `contradictions` why they stay")
        notes.append(f"{told}. They stay: {rule.contradictions}")
    return tuple(notes)


def refuse_across(
    found: LookAlikes, division: CaseDivision, rule: Duplicates, name: Callable[[int], str]
) -> tuple[str, ...]:
    """Notes about look-alikes in two parts, and their refusal.

    Raises:
        ValueError: there are such, and no reason to go on is given.
    """
    lines = []
    for number, one in enumerate(PARTS):
        for other in PARTS[number + 1 :]:
            pairs = list(found.between(division.part(one), division.part(other)))
            if pairs:
                leaked = len({b for _, b in pairs})
                shown = "; ".join(f"{name(a)} ~ {name(b)}" for a, b in pairs[:_SHOWN])
                lines.append(
                    f"{leaked} images of {other} look like one of {one}: {shown}{' …' if len(pairs) > _SHOWN else ''}"
                )
    if not lines:
        return ()
    told = ". ".join(lines)
    if rule.accepted is None:
        raise ValueError(
            f"{told}. Keep such images in one part (`together: true`), take them out, or write in `accepted` why they "
            "may stay"
        )
    return (f"{told}. They stay: {rule.accepted}",)


def _thumbnail(values: NDArray[np.generic], *, colour: bool) -> NDArray[np.uint8]:
    """Grey, 32 x 32, stretched from 0 to 255, so that windows and bit depths do not matter; 0 where flat."""
    from PIL import Image

    flat = values.mean(axis=0, dtype=np.float32) if values.ndim == 3 + colour else values
    if flat.dtype != np.uint8:
        flat = (flat.mean(axis=-1) if colour else flat).astype(np.float32)
    small = np.asarray(Image.fromarray(flat).resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)
    small = small.mean(axis=-1) if small.ndim == 3 else small
    low, high = float(small.min()), float(small.max())
    if high - low <= 0:
        return np.zeros((SIDE, SIDE), dtype=np.uint8)
    return np.rint((small - low) * (255 / (high - low))).astype(np.uint8)


def _hash(seen: NDArray[np.uint8]) -> int:
    frequencies = (_COSINES @ seen.astype(np.float64) @ _COSINES.T).ravel()
    above = frequencies > np.median(frequencies[1:]) if seen.any() else np.zeros(64, dtype=np.bool_)
    return int.from_bytes(np.packbits(above).tobytes(), "big")


def _close(bits: NDArray[np.uint64], limit: int) -> NDArray[np.int64]:
    """Pairs [n, 2] of hashes that differ by no more than ``limit`` bits, by products of signs: 64 - 2 distances."""
    octets = bits.astype(">u8").view(np.uint8).reshape(-1, 8)
    signs = np.unpackbits(octets, axis=1).astype(np.float32) * 2 - 1
    found = [np.zeros((0, 2), dtype=np.int64)]
    for start in range(0, len(signs), _CHUNK):
        products = signs[start : start + _CHUNK] @ signs[start:].T
        left, right = np.nonzero(products >= 64 - 2 * limit)
        later = right > left
        found.append(np.stack([left[later], right[later]], axis=1) + start)
    return np.concatenate(found)


def _correlation(thumbnails: NDArray[np.uint8], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Pearson's, of each pair; 0 where one of them is flat."""
    values = np.zeros(len(pairs))
    for start in range(0, len(pairs), _CHUNK):
        both = thumbnails[pairs[start : start + _CHUNK]].reshape(-1, 2, SIDE * SIDE).astype(np.float64)
        both -= both.mean(axis=2, keepdims=True)
        both /= np.maximum(np.linalg.norm(both, axis=2, keepdims=True), 1e-12)
        values[start : start + _CHUNK] = (both[:, 0] * both[:, 1]).sum(axis=1)
    return values
