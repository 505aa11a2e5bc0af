"""Shapes in signatures are checked while the tests run, unless GEOMED_SHAPES=0, which tests marked `compiles` need."""

import os
from typing import Literal

import pytest
from beartype import BeartypeConf, FrozenDict, beartype
from jaxtyping import install_import_hook

# Networks as tiny as these lose by a second thread, and very much where the cores are busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHAPES = os.environ.get("GEOMED_SHAPES", "1") != "0"

checked = beartype(
    conf=BeartypeConf(
        is_pep484_tower=True,  # an int is a float, as for mypy
        hint_overrides=FrozenDict(  # the adapters check them, and tests give others
            {
                Literal["q", "k", "v"]: str,
                Literal["zero", "reference"]: str,
                Literal["reference", "symmetric"]: str,
            }
        ),
    )
)

if SHAPES:
    # values, io and the report check their own input, and their tests give them wrong input
    install_import_hook(
        ["geomed.adapters", "geomed.backbones", "geomed.heads", "geomed.evaluation.segmentation_scores"],
        "conftest.checked",
    )


def pytest_collection_modifyitems(items):
    if SHAPES:
        skip = pytest.mark.skip(reason="torch.compile does not go through the shape checks: set GEOMED_SHAPES=0")
        for item in items:
            if item.get_closest_marker("compiles"):
                item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Where real data are promised (GEOMED_EXPECT_REAL=1), a test of them that is skipped has failed."""
    report = yield
    if report.skipped and item.get_closest_marker("real") and os.environ.get("GEOMED_EXPECT_REAL", "0") == "1":
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, though GEOMED_EXPECT_REAL=1: {report.longrepr[-1]}"
    return report
