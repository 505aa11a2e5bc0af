import math

import numpy as np
import pytest

from geomed.evaluation.seams import Seams, seam_score

BORDERS = (48, 96, 144)
SHAPE = (192, 200)


def smooth(seed=0):
    """Waves in all directions: no line is special."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    waves = [
        np.sin((rows * np.cos(angle) + columns * np.sin(angle)) / draw.uniform(3, 9) + draw.uniform(0, 6))
        for angle in draw.uniform(0, np.pi, 24)
    ]
    return (0.5 + 0.1 * sum(waves)).astype(np.float32)


def classes(field):
    return np.digitize(field, [0.3, 0.5, 0.7]).astype(np.uint8)


def stepped(field, step=0.3):
    """The field as windows would show it that disagree."""
    tiles = np.add.outer(
        np.searchsorted(BORDERS, np.arange(SHAPE[0]), "right"), np.searchsorted(BORDERS, np.arange(SHAPE[1]), "right")
    )
    return (field + step * (tiles % 2)).astype(np.float32)


@pytest.mark.parametrize("kind", [lambda field: field, lambda field: np.stack([field, 1 - field]), classes])
def test_finds_steps_where_they_are_and_only_there(kind):
    for seed in range(3):
        field = smooth(seed)
        plain, seamed = kind(field), kind(stepped(field))
        assert abs(seam_score(plain, BORDERS, BORDERS)) < 0.4  # of so few lines
        assert seam_score(seamed, BORDERS, BORDERS) > 1
        elsewhere = [border + 20 for border in BORDERS]
        assert seam_score(seamed, elsewhere, elsewhere) < 0.3


def test_is_the_ratio_of_mean_changes():
    values = np.tile(np.array([0, 1, 2, 5, 6, 7], dtype=np.float64), (4, 1))
    assert seam_score(values, [], [3]) == pytest.approx(3 / 1 - 1)
    assert seam_score(values, [], [3, 3]) == pytest.approx(3 / 1 - 1)
    assert seam_score(values, [], [1]) == pytest.approx(1 / 1.5 - 1)
    assert seam_score(np.array([[1, 1, 2], [1, 1, 3], [1, 2, 3], [2, 2, 3]], dtype=np.uint8), [], [2]) == 3.0
    # each axis has its own reference: stripes are no seams
    striped = np.tile(np.arange(6) % 2, (6, 1)).astype(np.float64) + 0.01 * np.arange(6)[:, None]
    assert seam_score(striped, [3], [3]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kind", [lambda field: field, lambda field: np.stack([field, 1 - field]), classes])
def test_leaves_out_what_was_not_observed(kind):
    values = kind(smooth())
    holes = values.copy()
    holes[..., 40:60, 30:170] = 255 if values.dtype == np.uint8 else np.nan
    holes[..., :, 96] = 255 if values.dtype == np.uint8 else np.nan
    score = seam_score(holes, BORDERS, BORDERS)
    assert abs(score) < 0.4
    other = holes.copy()
    if values.dtype == np.uint8:
        assert math.isnan(seam_score(np.full_like(values, 255), BORDERS, BORDERS))
    else:
        if values.ndim == 3:
            other[1] = values[1]  # nothing is known where one class is not
        assert seam_score(other, BORDERS, BORDERS) == pytest.approx(score)
        assert math.isnan(seam_score(np.full_like(values, np.nan), BORDERS, BORDERS))


def test_nothing_changes_or_only_borders_do():
    flat = np.zeros((8, 8), dtype=np.uint8)
    assert seam_score(flat, [4], [4]) == 0
    flat[4:] = 1
    assert seam_score(flat, [4], []) == math.inf
    assert seam_score(flat, [3], [3]) == -1
    assert math.isnan(seam_score(np.zeros((2, 2), dtype=np.uint8), [1], []))  # there is no other line


@pytest.mark.parametrize("kind", [lambda field: field, lambda field: np.stack([field, 1 - field]), classes])
def test_strips_give_the_same(kind):
    values = kind(stepped(smooth()))
    for rows in (1, 7, 48, 1000):
        seams = Seams(SHAPE, BORDERS, BORDERS)
        for row in range(0, SHAPE[0], rows):
            seams.add(values[..., row : row + rows, :])
        assert seams.score() == pytest.approx(seam_score(values, BORDERS, BORDERS), rel=1e-9)


def test_refusals():
    with pytest.raises(ValueError, match="none was given"):
        seam_score(np.zeros((4, 4)), [], [])
    for wrong in (0, 4, -1):
        with pytest.raises(ValueError, match=f"from 1 to 3, not at {wrong}"):
            seam_score(np.zeros((4, 4)), [wrong], [])
    seams = Seams((4, 5), [2], [])
    with pytest.raises(ValueError, match="5 columns and 4 rows are left of it, this one has 4 and 2"):
        seams.add(np.zeros((2, 4)))
    seams.add(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="4 rows and 3 were seen"):
        seams.score()
    with pytest.raises(ValueError, match="1 rows are left"):
        seams.add(np.zeros((2, 5)))
    with pytest.raises(ValueError, match=r"classes are \[H, W\]|Type-check error"):
        Seams((4, 5), [2], []).add(np.zeros((3, 4, 5), dtype=np.uint8))
