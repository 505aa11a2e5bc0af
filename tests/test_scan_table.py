"""Tables of scans: what fits becomes samples, what does not is refused by name and number."""

import logging
import pickle
import re

import numpy as np
import pytest
import torch
import yaml
from fake_cohorts import HEADER, LEGEND, Made, picture, rows
from jsonargparse import ArgumentParser
from PIL import Image
from torch.utils.data import DataLoader

from geomed.data.area import Legend
from geomed.data.datamodule import DataModule
from geomed.data.duplicates import Duplicates
from geomed.data.rendition import Rendition
from geomed.data.scan_cache import ScanCache
from geomed.data.scan_table import ScanTable
from geomed.data.source import Source, collate
from geomed.data.targets import Findings, Grade, OneOf
from geomed.evaluation.patient_splits import AllIn, ByMark, ByPatient, BySite


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path)


def test_samples_are_what_the_table_says(made):
    source = made.source(site="site", side="eye", sex="sex", age="age")
    source.prepare()
    assert source.classes == ("healthy", "ill")
    assert source.bands == ("grey",)
    assert source.scenes() == ()
    seen = {}
    for part in ("train", "val", "test"):
        for sample in source.split(part):
            case = source.cases[sample["case"]]
            assert sample["values"].shape == (1, 16, 16)
            assert sample["values"].dtype == torch.uint8
            assert sample["label"].item() == int(made.rows[case.row - 2][1])
            assert sample["label"].shape == ()
            seen[int(sample["case"])] = int(sample["patient"])
    assert seen == {i: i // 2 for i in range(24)}
    first = source.cases[0]
    assert (first.site, first.side, first.sex, first.age, first.row) == ("site 0", "left", "f", 63.0, 2)
    assert "DOE" not in repr(first)
    assert "SECRET" not in repr(first)


def test_the_picture_keeps_its_shape_and_brightness(made):
    flat = np.zeros((20, 40), dtype=np.uint8)
    flat[:, 20:] = 200
    Image.fromarray(flat).save(made.folder / made.rows[0][0])
    source = made.source(by=AllIn())
    values = source.split("test")[0]["values"][0]
    assert values[:4].eq(0).all()  # filled: the image is twice as wide as high
    assert values[4:12, :7].eq(0).all()
    assert values[4:12, 9:].eq(200).all()
    stretched = made.source(by=AllIn(), rendition=Rendition(size=16, keep_aspect=False)).split("test")[0]["values"][0]
    assert stretched[:, 9:].eq(200).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_cached_samples_are_the_same_as_decoded_ones_also_in_workers(made, tmp_path, workers):
    plain = made.source()
    cached = made.source(cache=ScanCache(folder=str(tmp_path / "cache")))
    cached.prepare()
    for part in ("train", "test"):
        one, other = (
            list(DataLoader(source.split(part), batch_size=3, num_workers=workers, collate_fn=collate))
            for source in (plain, cached)
        )
        assert all(torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a)


def test_it_goes_through_the_data_module(made):
    module = DataModule(made.source(), batch_size=4)
    module.prepare_data()
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert batch["values"].shape == (4, 1, 16, 16)
    assert batch["label"].shape == (4,)


def test_what_is_logged_and_pickled_names_nobody(made, caplog):
    with caplog.at_level(logging.DEBUG):
        source = made.source(site="site")
        source.prepare()
    assert "no patient is in two of train, val and test" in caplog.text
    for secret in ("DOE", "SECRET", ".png"):
        assert secret not in caplog.text
        assert secret not in source.summary
    key = (made.folder / "key").read_bytes()
    assert key not in pickle.dumps(source)


def test_labels_that_the_legend_does_not_know_are_counted_and_found_by_name(made):
    made.rows[3][1], made.rows[4][1], made.rows[5][1] = "DOE^JANE", "", "7"
    message, source = made.refused(r"2 of 24 rows: the label is not in the legend; the classes are healthy, ill \(")
    assert "1 of 24 rows: the label is empty" in message
    names = re.findall("[0-9a-f]{16}", message)
    assert {source.row_of(name) for name in names} == {5, 6, 7}
    with pytest.raises(ValueError, match="no case is called so"):
        source.row_of("0" * 16)


def test_what_the_legend_ignores_is_left_out_and_told(made):
    for row in made.rows[:2]:
        row[1] = "?"
    source = made.source()
    assert len(source.cases) == 22
    assert "2 of 24 rows have a label that the legend ignores" in source.summary


def test_a_table_without_a_header_is_refused_and_not_quoted(made):
    made.header = None
    made.refused("holds none of the columns path, label, patient_id; it has no header")


def test_missing_columns_are_named(made):
    made.header = ("path", "label", "who", *HEADER[3:])
    made.refused("has no column patient_id; .* say `patients: none`")
    made.header = ("path", "label", "label", *HEADER[3:])
    made.refused("has several columns label", patients="none")


def test_repeated_and_contradictory_rows_are_refused(made):
    made.rows += [list(made.rows[0]), list(made.rows[1]), list(made.rows[2])]
    made.rows[-2][1] = "1"
    made.rows[-1][0] = "images/../" + made.rows[-1][0]
    made.rows[-1][2] = "SECRET-9"
    message, _ = made.refused("1 of 27 rows: the same file stands there already; leave one row")
    assert "1 of 27 rows: the same file stands there already with another label" in message
    assert "1 of 27 rows: the same file stands there already with another patient" in message


def test_rows_of_another_length_are_refused(made):
    made.rows[4].append("more")
    made.refused("1 of 25 rows have more or fewer cells than the 8 of the header, the first is row 6")


def test_missing_patients_and_impossible_ages_are_refused(made):
    made.rows[2][2], made.rows[3][6] = "", "19570104"
    message, _ = made.refused("1 of 24 rows: the patient is empty", age="age")
    assert "1 of 24 rows: the age is no number of years from 0 to 130" in message


def test_patients_written_in_two_ways_or_of_two_sexes_are_refused(made):
    made.rows[3][2], made.rows[5][2], made.rows[7][5] = "secret-1", "SECRET-02", "m"
    message, source = made.refused("2 of 24 rows: the patient is another one's but for zeros", sex="sex")
    assert "1 of 24 rows: the patient has another sex in another row" in message
    assert {source.row_of(name) for name in re.findall("[0-9a-f]{16}", message)} == {5, 7, 9}
    made.rows = rows()
    for index, row in enumerate(made.rows):
        row[2] = f"{10 ** (index // 2)}"  # zeros that count
    made.source().prepare()


def test_an_empty_path_is_refused(made):
    made.rows[4][0] = ""
    message, source = made.refused("1 of 24 rows: the path is empty")
    assert source.row_of(re.findall("[0-9a-f]{16}", message)[0]) == 6


def test_all_unreadable_files_are_told_at_once(made):
    (made.folder / made.rows[1][0]).write_bytes(b"nothing")
    (made.folder / made.rows[7][0]).unlink()
    path = made.folder / made.rows[9][0]
    path.write_bytes(path.read_bytes()[:150])
    for given in ({}, {"cache": ScanCache(folder=str(made.folder / "cache"))}):
        message, source = made.refused("[13] of 24 scans cannot be used", **given)
        if not given:
            assert {source.row_of(name) for name in re.findall("[0-9a-f]{16}", message)} == {3, 9, 11}


def test_16_bits_among_8_are_refused(made):
    deep = picture(99).astype(np.uint16) * 200
    Image.fromarray(deep).save(made.folder / made.rows[5][0])
    made.refused("1 of 24 scans cannot be used.*\n.*16-bit values .*name a `window`")
    message, source = made.refused("1 of 24 scans are of more than 8 bits", rendition=Rendition(size=16, window="full"))
    assert source.row_of(re.findall("[0-9a-f]{16}", message)[0]) == 7


def test_colours_in_a_grey_set_are_refused_and_grey_in_a_coloured_one_is_told(made):
    for row in made.rows[:4]:
        Image.fromarray(picture(50 + int(row[0][16:-4]), colour=True)).save(made.folder / row[0])
    made.refused("4 of 24 scans cannot be used.*\n.*it has colours and the set is grey")
    source = made.source(rendition=Rendition(size=16, colour=True))
    assert "4 of 24 scans are in colour (healthy 2 of 12, ill 2 of 12); a model may learn just that" in source.summary
    assert source.bands == ("red", "green", "blue")
    assert source.split("train")[0]["values"].shape == (3, 16, 16)
    grey = made.source(rendition=Rendition(size=16, luma=True), by=AllIn()).split("test")[0]["values"]
    assert grey.shape == (1, 16, 16)


def test_one_class_only_is_refused(made):
    for row in made.rows:
        row[1] = "0"
    made.refused("cases of healthy only")


def test_a_patient_in_two_given_parts_is_refused(made):
    for index, row in enumerate(made.rows):
        row[-1] = "train" if index < 13 else "test"
    message, source = made.refused("train and test share 1 patients", by=ByMark(), part="part")
    assert source.patient_id(12) in message
    made.rows[12][-1] = "test"
    source = made.source(by=ByMark(), part="part")
    assert source.division.test == tuple(range(12, 24))


def test_the_same_image_of_two_patients_is_refused_across_parts(made):
    for index, row in enumerate(made.rows):
        row[-1] = "train" if index < 12 else "test"
    Image.fromarray(picture(2)).save(made.folder / made.rows[16][0])
    made.refused("several labels", by=ByMark(), part="part")
    made.rows[16][1] = made.rows[17][1] = made.rows[2][1]
    made.refused("1 images of test look like one of train", by=ByMark(), part="part")
    source = made.source(duplicates=Duplicates(together=True))
    parts = [part for part in ("train", "val", "test") if {2, 16} & set(source.division.part(part))]
    assert len(parts) == 1
    assert {2, 3, 16, 17} <= set(source.division.part(parts[0]))


def test_without_patients_every_figure_is_stamped(made):
    source = made.source(patients="none")
    assert source.division.image_level
    assert "image-level split, optimistic" in source.summary
    assert not made.source().division.image_level


def test_scans_that_belong_together_stay_in_one_part_though_no_patient_is_known(made):
    for number, row in enumerate(made.rows):
        row[4] = f"smear {number // 4}"  # its two patients, whom nobody knows
    source = made.source(patients="none", group="eye")
    assert source.division.image_level
    smears = [{source.cases[index].group for index in source.division.part(part)} for part in ("train", "val", "test")]
    assert sum(map(len, smears)) == len(set().union(*smears)) == 6
    assert "6 groups of scans that belong together stay together, the largest of 4 images" in source.summary
    assert len(set(source.patient_numbers.tolist())) == 6
    apart = made.source(patients="none").division
    assert any(
        {index // 4 for index in apart.train} & {index // 4 for index in other} for other in (apart.val, apart.test)
    )


def test_a_site_is_left_out(made):
    source = made.source(by=BySite(test=("site 2",), val_fraction=0.25), site="site")
    assert {source.cases[index].site for index in source.division.test} == {"site 2"}


def test_findings_are_several_columns(made):
    made.header = ("path", "opacity", "patient_id", "site", "eye", "sex", "nodule", "part")
    for index, row in enumerate(made.rows):
        row[6] = ("1.0", "0", "-1")[index % 3]
    source = made.source(labels=Findings(findings=("opacity", "nodule"), unknown=(-1,)))
    sample = source.split("train")[0]
    assert sample["label"].dtype == torch.float32
    expected = {0: [0.0, 1.0], 2: [1.0, 255.0]}
    for part in ("train", "val", "test"):
        for one in source.split(part):
            assert one["label"].tolist() == expected.get(int(one["case"]), one["label"].tolist())
    made.rows[0][6] = "maybe"
    made.refused("is none of yes, no and unknown", labels=Findings(findings=("opacity", "nodule"), unknown=(-1,)))


def test_grades_have_an_order():
    target = Grade(legend=Legend(classes={"none": [0], "mild": [1], "severe": [2]}))
    assert target.ordered
    assert not OneOf(legend=LEGEND).ordered
    assert target.encode(["2.0"]) == (2,)
    assert target.tensor((2,)).dtype == torch.int64


def test_images_without_labels_can_be_predicted(made):
    made.header = ("path", "x", "y", *HEADER[3:])
    source = made.source(by=AllIn(part="predict"))
    source.prepare()
    samples = source.split("predict")
    assert len(samples) == 24
    assert "label" not in samples[0]
    assert len(source.split("test")) == 0


def test_parquet_is_read_or_its_reader_is_named(made, tmp_path):
    pandas = pytest.importorskip("pandas")
    made.source()
    frame = pandas.read_csv(tmp_path / "table.csv")
    try:
        frame.to_parquet(tmp_path / "table.parquet")
    except ImportError:
        (tmp_path / "table.parquet").write_bytes(b"PAR1")
        made.refused("Parquet needs pyarrow", table=str(tmp_path / "table.parquet"))
        return
    source = made.source(table=str(tmp_path / "table.parquet"), age="age")
    assert [case.labels for case in source.cases] == [case.labels for case in made.source().cases]
    assert source.cases[0].age == 63.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"by": ByMark()}, "name it in `part`"),
        ({"by": BySite(test=("a",))}, "name it in `site`"),
        ({"site": "label"}, "label is named twice"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(made, given, message):
    with pytest.raises(ValueError, match=message):
        made.source(**given)


def test_steps_that_contradict_each_other_are_refused():
    for given in ({"size": 0}, {"colour": True, "luma": True}, {"depth": 16, "window": "lung"}, {"slices": 0}):
        with pytest.raises(ValueError, match=r"correct them|set one of them|take depth 8"):
            Rendition(**given)


CONFIG = """
class_path: geomed.data.scan_table.ScanTable
init_args:
  table: table.csv
  patients: none
  labels:
    class_path: geomed.data.targets.OneOf
    init_args:
      legend: {classes: {healthy: [0], ill: [1]}}
  by:
    class_path: geomed.evaluation.patient_splits.ByPatient
    init_args: {fractions: [0.6, 0.2, 0.2]}
  rendition: {size: 128, window: [40, 400], slices: 8}
  cache: {folder: kept}
  duplicates: {together: true}
"""


def test_a_config_makes_one():
    parser = ArgumentParser()
    parser.add_argument("--source", type=Source)
    source = parser.instantiate(parser.parse_object({"source": yaml.safe_load(CONFIG)})).source
    assert source == ScanTable(
        table="table.csv",
        patients="none",
        labels=OneOf(legend=Legend(classes={"healthy": [0], "ill": [1]})),
        by=ByPatient(fractions=(0.6, 0.2, 0.2)),
        rendition=Rendition(size=128, window=(40.0, 400.0), slices=8),
        cache=ScanCache(folder="kept"),
        duplicates=Duplicates(together=True),
    )
