"""Names, identifiers, dates and UIDs planted in headers, files and folders: they must be in nothing that is made."""

import base64
import csv
import json
import os
import re
import subprocess
import sys
import traceback
import warnings
import zipfile

import numpy as np
import pytest
from fakes_scans import PERSON, nine_cases, slice_of, uid
from PIL import Image, PngImagePlugin

from geomed.data.area import Legend
from geomed.data.case_ids import CaseIds
from geomed.data.folder_of_classes import FolderOfClasses
from geomed.data.rendition import Rendition
from geomed.data.scan_cache import ScanCache
from geomed.data.scan_files import Reading
from geomed.data.scan_table import ScanTable
from geomed.data.targets import OneOf
from geomed.evaluation.patient_splits import ByPatient
from geomed.io.dicom import read_series

FOLDER, WARD, FILE = "Jane_Doe-1970-12-24", "ward-of-jane", "img_of_DOE"
SECRETS = (*PERSON.values(), FOLDER, WARD, FILE, "Dr^Referrer", "Station-Secret", uid("study"), uid("frame"))
"""What was planted besides the UIDs of single files, which ``planted`` adds."""

# The user's own configuration, with the user's own paths, is copied into a run, so that it can be repeated; nothing
# else may hold a path.
OWN_CONFIG = "config.yaml"

CONFIG = """\
seed_everything: 1
model:
  class_path: Classification
  init_args:
    backbone:
      class_path: ViT
      init_args:
        name: vit_tiny_patch16_224
        inputs: {class_path: Inputs, init_args: {bands: [grey], mean: [0.5], std: [0.3]}}
        image_size: 16
        size: {dim: 16, depth: 1, heads: 2, patch: 8}
    head: {class_path: Pooled, init_args: {num_classes: 2}}
    adapter: {class_path: LoRA, init_args: {rank: 2}}
data:
  source:
    class_path: ScanTable
    init_args:
      table: TABLE
      labels: {class_path: OneOf, init_args: {legend: {classes: {healthy: [0], ill: [1]}}}}
      by: {class_path: ByPatient, init_args: {fractions: [0.5, 0.25, 0.25]}}
      rendition: {size: 16, window: full}
      cache: {folder: cache}
      ids: {key_file: key}
      sex: sex
      age: age
  batch_size: 8
trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false, default_root_dir: runs/first}
"""

PROGRAM = """\
import logging
logging.basicConfig(level=logging.INFO)
logging.getLogger("geomed").setLevel(logging.DEBUG)
from geomed.cli import main
print("codes", [main(words) for words in (
    ["fit", "--config", "whole.yaml"],
    ["test", "--config", "whole.yaml"],
    ["predict", "--config", "whole.yaml"],
    ["report", "runs/first", "--out", "report.html", "--draws", "100"],
    ["fit", "--config", "broken.yaml"],
    ["fit", "--config", "nowhere.yaml"],
    ["fit", "--config", "mistaken.yaml"],
)])
"""


def dicom(path, seed, **elements):
    """One grey DICOM picture of a person; the series' UID, where it has a name, is the seed's."""
    values = np.random.default_rng(seed).integers(0, 4000, (16, 16)).astype(np.int16)
    values[:8] += np.int16(seed % 2 * 400)
    about = {"ReferringPhysicianName": "Dr^Referrer", "StationName": "Station-Secret", "AccessionNumber": "SECRET-123"}
    item = slice_of(seed, values, modality="MR", series=f"s{seed}", **about, **elements)
    item.save_as(path, enforce_file_format=True)
    return [str(item[name].value) for name in ("SOPInstanceUID", "SeriesInstanceUID")]


def table(folder, count=40, *, ending="dcm", write=dicom):
    """A table of pictures of half as many people, and all that was planted."""
    (folder / WARD).mkdir(parents=True)
    planted = list(SECRETS)
    rows = []
    for number in range(count):
        path = f"{WARD}/{FILE}_{number:02d}.{ending}"
        planted += write(folder / path, number) or []
        person = f"SECRET-123-{number // 4 * 2 + number % 2:02d}"
        rows.append((path, person, number % 2, "FM"[number // 4 % 2], 40 + number // 4))
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as text:
        csv.writer(text).writerows([("path", "patient_id", "label", "sex", "age"), *rows])
    return planted


def source(folder, key, **fields):
    return ScanTable(
        table=str(folder / "table.csv"),
        labels=OneOf(legend=Legend(classes={"healthy": [0], "ill": [1]})),
        by=ByPatient(fractions=(0.5, 0.25, 0.25)),
        ids=CaseIds(key_file=str(key)),
        **{"rendition": Rendition(size=16, window="full")} | fields,
    )


def found(planted, text):
    """The planted words in a text, whatever their case."""
    low = (text if isinstance(text, bytes) else text.encode()).lower()
    return [word for word in planted if word.lower().encode() in low]


def leaks(planted, root):
    """Every file below a folder, and what was planted of it: in its name, its bytes, and what is packed in it."""
    told = {}
    for path in sorted(root.rglob("*")):
        seen = found(planted, str(path.relative_to(root)))
        if path.is_file() and path.name != OWN_CONFIG:
            data = path.read_bytes()
            seen += found(planted, data)
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as packed:
                    seen += [word for one in packed.namelist() for word in found(planted, packed.read(one))]
            for picture in re.findall(rb"base64,([A-Za-z0-9+/=]+)", data):
                seen += found(planted, base64.b64decode(picture))
        if seen:
            told[str(path.relative_to(root))] = seen
    return told


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Fit, test, predict, report, and fits of a broken file, no table and a wrong key: all words and files."""
    root = tmp_path_factory.mktemp("private")
    people = root / "people" / FOLDER
    planted = table(people)
    broken = root / "people" / f"{FOLDER}-broken"
    table(broken)
    (broken / WARD / f"{FILE}_03.dcm").write_bytes(b"DOE^JANE 19701224 is no DICOM")
    work = root / "work"
    work.mkdir()
    configs = {
        name: CONFIG.replace("TABLE", json.dumps(str(folder / "table.csv")))
        for name, folder in (("whole", people), ("broken", broken), ("nowhere", people / WARD))
    }
    configs["mistaken"] = configs["whole"].replace("size: 16, window: full", "size: 16, windows: full")
    for name, text in configs.items():
        (work / f"{name}.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", PROGRAM],
        cwd=work,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "400"},
        capture_output=True,
        text=True,
        check=False,
    )
    for name in configs:
        (work / f"{name}.yaml").unlink()
    return work, planted, done


def test_everything_ran(run):
    work, _, done = run
    assert "codes [0, 0, 0, 0, 2, 2, 2]" in done.stdout, done.stderr[-3000:]
    made = {path.name for path in work.rglob("*") if path.is_file()}
    assert {"adapter.safetensors", "best.ckpt", "metrics.json", "cases.csv", "setup.json", "predictions.csv"} <= made
    assert {"report.html", OWN_CONFIG, "test_openings.jsonl"} <= made
    assert any(name.endswith(".scans") for name in made)


def test_what_was_planted_is_found_where_it_is(run):
    work, planted, _ = run
    people = work.parent / "people"
    told = leaks(planted, people)
    assert {word for words in told.values() for word in words} >= set(planted)
    assert found(planted, (next(work.rglob(OWN_CONFIG))).read_bytes()) == [FOLDER]  # the exception, the user's own path


def test_no_file_holds_a_name_an_identifier_a_date_or_a_path(run):
    work, planted, _ = run
    assert leaks([*planted, str(work.parent / "people")], work) == {}


def test_nothing_said_holds_one_either(run):
    _, planted, done = run
    for words in (done.stdout, done.stderr):
        assert [line for line in words.splitlines() if found(planted, line)] == []
    assert "1 of 40 scans cannot be used" in done.stderr


def test_the_key_of_the_names_is_in_no_file(run):
    work, _, _ = run
    key = (work / "key").read_bytes()
    assert [
        path for path in work.rglob("*") if path.is_file() and path.name != "key" and key in path.read_bytes()
    ] == []


def png(path, number):
    about = PngImagePlugin.PngInfo()
    about.add_text("Author", "DOE^JANE SECRET-123 19701224 20010203 Dr^Referrer Station-Secret")
    about.add_text("Comment", f"{uid('study')} {uid('frame')}")
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)).save(path, pnginfo=about)


def nifti(path, number):
    import nibabel

    image = nibabel.Nifti1Image(np.random.default_rng(number).integers(0, 99, (6, 6, 3)).astype(np.int16), np.eye(4))
    image.header["descrip"] = b"DOE^JANE SECRET-123 19701224"
    image.header["db_name"] = b"SECRET-123"
    image.to_filename(path)


BROKEN = {
    "no such file": lambda path: path.unlink(),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "something else": lambda path: path.write_bytes(b"DOE^JANE SECRET-123 19701224\n" * 20),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize(
    ("ending", "write"), [("dcm", dicom), ("png", png), ("nii.gz", nifti)], ids=["dicom", "png", "nifti"]
)
@pytest.mark.parametrize("cached", [False, True], ids=["read", "cached"])
def test_errors_about_a_broken_file_name_nobody(tmp_path, caplog, ending, write, how, cached):
    folder = tmp_path / FOLDER
    planted = table(folder, 8, ending=ending, write=write)
    BROKEN[how](folder / WARD / f"{FILE}_05.{ending}")
    cache = ScanCache(folder=str(tmp_path / "cache")) if cached else None
    made = source(folder, tmp_path / "key", cache=cache)
    with pytest.raises(ValueError, match="1 of 8 scans cannot be used") as caught:
        made.prepare()
    assert found(planted, str(caught.value)) == []
    # what GEOMED_TRACEBACK=1 shows, without the test's own lines
    shown = "".join(traceback.format_exception(caught.value))
    assert found(planted, shown) == []
    assert found(planted, caplog.text) == []


def test_errors_about_a_series_quote_no_header(tmp_path):
    refused = [case for case in nine_cases(tmp_path / FOLDER) if case.right is None]
    assert len(refused) >= 3
    for case in refused:
        with pytest.raises(ValueError, match="case x") as caught:
            read_series(case.files, named="case x")
        shown = "".join(traceback.format_exception(caught.value))
        assert found([*SECRETS, uid("series", "one"), uid("series", "two")], shown) == []


def test_errors_about_a_folder_of_classes_quote_no_path(tmp_path):
    root = tmp_path / FOLDER
    for kind in ("healthy", "ill"):
        (root / kind / WARD).mkdir(parents=True)
        for number in range(4):
            png(root / kind / WARD / f"{FILE}_{number}.png", number + 4 * (kind == "ill"))
    (root / "ill" / WARD / f"{FILE}_1.png").write_bytes(b"DOE^JANE")
    for patients, rule in (("(no such patient)", "finds no patient"), (f"({FILE}_[0-9])", "cannot be used")):
        made = FolderOfClasses(
            folder=str(root),
            patients=patients,
            by=ByPatient(),
            rendition=Rendition(size=16),
            ids=CaseIds(key_file=str(tmp_path / "key")),
        )
        with pytest.raises(ValueError, match=rule) as caught:
            made.prepare()
        told = str(caught.value).replace(patients, "")  # the user's own expression may be quoted
        assert found(SECRETS, told) == []


def test_errors_about_headers_quote_no_header(tmp_path, caplog):
    folder = tmp_path / FOLDER
    planted = table(folder, 8)
    for number, wrong in enumerate(
        (
            {"PhotometricInterpretation": "DOE^JANE"},
            {"Modality": "SECRET-123"},
            {"RescaleSlope": "1", "RescaleIntercept": "SECRET-123"},
            {"WindowCenter": "19701224", "WindowWidth": "-5"},
            {"Rows": None},
            {"PixelData": b"DOE^JANE"},
        )
    ):
        try:
            with warnings.catch_warnings(action="ignore"):  # what pydicom says to whoever writes such a thing
                dicom(folder / WARD / f"{FILE}_{number:02d}.dcm", number, **wrong)
        except (ValueError, OverflowError):
            continue  # pydicom does not write such a thing
    made = source(folder, tmp_path / "key")
    caplog.clear()
    with (
        warnings.catch_warnings(record=True, action="always") as warned,
        pytest.raises(ValueError, match="of 8 scans cannot be used") as caught,
    ):
        made.prepare()
    assert found(planted, "".join(str(one.message) for one in warned) + caplog.text) == []
    assert found(planted, "".join(traceback.format_exception(caught.value))) == []


def test_errors_about_a_table_quote_no_row(tmp_path):
    folder = tmp_path / FOLDER
    planted = table(folder, 8)
    good = (folder / "table.csv").read_text()
    for rows in (
        good.replace(",1,", ",DOE^JANE,"),  # a label that nobody knows
        good.partition("\n")[2],  # no header
        good.replace("SECRET-123-00", ""),  # no patient
        good.replace(",40", ",born 19701224"),  # no age
        good.replace("ill", "SECRET-123") + "SECRET-123,DOE^JANE\n",  # a short row
        good + good.splitlines()[1] + "\n",  # a row twice
        good.replace("_03.dcm", '_"03.dcm'),
    ):
        (folder / "table.csv").write_text(rows)
        made = source(folder, tmp_path / "key", sex="sex", age="age")
        with pytest.raises(ValueError, match=r"table|rows") as caught:
            made.prepare()
        assert found(planted, "".join(traceback.format_exception(caught.value))) == []


def test_printing_a_case_shows_nobody(tmp_path):
    folder = tmp_path / FOLDER
    planted = table(folder)
    made = source(folder, tmp_path / "key")
    assert found(planted, repr(made.cases[0])) == []
    assert found(planted, made.summary) == []
    scan = Reading().read(made.cases[0].path, named="case x")
    assert found(planted, repr(scan)) == []
    assert found(planted, made.case_id(0) + str(made.patient_id(0))) == []


def test_predictions_do_not_say_whose_they_are_without_the_key(run):
    work, _, _ = run
    with next(work.rglob("predictions.csv")).open(newline="", encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    assert all(re.fullmatch("[0-9a-f]{16}", row[name]) for row in rows for name in ("case", "patient"))
    ids = CaseIds(key_file=str(work / "key"))
    own = {ids.case(f"{WARD}/{FILE}_{number:02d}.dcm") for number in range(40)}
    assert {row["case"] for row in rows} <= own
