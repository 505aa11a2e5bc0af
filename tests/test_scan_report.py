import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from fake_runs import NAMES, make_run
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from geomed.evaluation.bootstrap import Bootstrap
from geomed.evaluation.classification_scores import ClassificationScores
from geomed.evaluation.roc import AUROC
from geomed.report import main
from geomed.report.bands import CurveBands
from geomed.report.charts import stepped
from geomed.report.command import report
from geomed.report.comparison import Comparison
from geomed.report.results import Results
from geomed.report.run import labels, read_run

VOID = {"meta", "img", "circle", "line", "polyline", "polygon"}
EVIL = "<script>alert('x')</script>\"&"
DRAWS = 200


class Page(HTMLParser):
    """Walks a page, remembers what is open, what is fetched and what is read."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.fetched, self.said = [], [], [], []
        self.feed(text)
        self.close()
        self.words = " ".join(" ".join(self.said).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.said.append(data)


def page_of(*folders):
    return Page(report(folders, draws=DRAWS))


def edit(folder, **changes):
    path = folder / "evaluation" / "setup.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(folder, change):
    """Pass the rows of cases.csv through a function."""
    path = folder / "evaluation" / "cases.csv"
    with path.open(newline="") as file:
        rows = [change(row) for row in csv.DictReader(file)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("kind", NAMES)
def test_every_kind_gives_a_whole_page_that_needs_nothing_else(tmp_path, kind):
    run = make_run(tmp_path / "run", kind=kind, patients=40, pictures=3)
    out = tmp_path / "page.html"
    assert main([str(run), "--out", str(out), "--draws", str(DRAWS)]) == 0
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert len(page.fetched) == 6
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.fetched)
    assert "url(" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert len(text) < 2_000_000
    assert "nan" not in re.sub(r"[A-Za-z0-9+/]{60,}", "", text).replace("resonance", "").split()
    for said in (
        "Not a medical device",
        "No diagnostic use",
        "Intended use",
        "Out of scope",
        "Split by patient",
        "No refusal was overridden",
        "opened once",
        "Not evidence of correctness",
        "Worst errors",
        "ECE",
        "withheld",
        *NAMES[kind],
    ):
        assert said in page.words


def test_the_scores_are_those_that_geomed_test_writes(tmp_path):
    run = read_run(make_run(tmp_path / "run", patients=40))
    found = Results.of(run, Bootstrap(seed=0, draws=DRAWS))
    assert found.temperature is not None
    scaled = found.temperature.apply(run.test.predictions)
    alone = ClassificationScores.of(scaled, bootstrap=Bootstrap(seed=0, draws=DRAWS))
    assert found.scores.to_dict() == alone.to_dict()
    area = alone.overall["AUROC"]
    words = page_of(tmp_path / "run").words
    assert (
        f"{area.value:.3f} (95 % interval {area.interval.low:.3f} to {area.interval.high:.3f}, over patients)" in words
    )


def test_metrics_that_say_otherwise_are_told_and_their_rule_is_kept(tmp_path):
    folder = make_run(tmp_path / "run", patients=40)
    found = Results.of(read_run(folder), Bootstrap(seed=0, draws=DRAWS))
    metrics = found.scores.to_dict() | {
        "operating_points": [{"point": {"rule": "sensitivity of at least 0.95", "threshold": 0.3}}]
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    words = page_of(folder).words
    assert "other values" not in words
    assert "sensitivity of at least 0.95" in words
    metrics["overall"]["AUROC"]["value"] += 0.01
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert "metrics.json tells other values of AUROC than cases.csv gives" in page_of(folder).words


def test_an_adapter_no_better_than_its_baselines_is_said_to_be_so(tmp_path):
    lora = make_run(tmp_path / "a", skill=1.0)
    probe = make_run(tmp_path / "b", skill=1.0, seed=1, adapter=None, baseline="linear probe")
    words = page_of(lora, probe).words
    assert (
        "LoRA is not shown to be better than linear probe : the interval of the paired difference includes 0" in words
    )
    assert "There is no CNN on this test set among the runs: that LoRA beats it is not shown." in words


@pytest.mark.parametrize(("strong", "outcome"), [(True, "better"), (False, "worse")])
def test_a_difference_that_is_there_is_said_plainly(tmp_path, strong, outcome):
    lora = make_run(tmp_path / "a", skill=1.6 if strong else 0.3)
    cnn = make_run(tmp_path / "b", skill=0.3 if strong else 1.6, seed=1, adapter=None, baseline="cnn")
    assert f"LoRA is {outcome} than CNN on this test set" in page_of(cnn, lora).words
    runs = [read_run(folder) for folder in (cnn, lora)]
    results = [Results.of(run, Bootstrap(seed=0, draws=DRAWS)) for run in runs]
    (pair,) = Comparison.of(results, draws=DRAWS).pairs
    assert pair.outcome == outcome
    told = pair.differences[0]
    assert told.difference.value == pytest.approx(AUROC().of(results[1].test) - AUROC().of(results[0].test))


def test_runs_on_different_test_sets_are_shown_and_not_compared(tmp_path):
    one, two = make_run(tmp_path / "a", patients=30), make_run(tmp_path / "b", patients=30, cohort=1, seed=1)
    words = page_of(one, two).words
    assert "The runs were tested on 2 different test sets" in words
    assert "Paired differences" not in words
    assert words.count("Operating points") == 2


def test_runs_whose_records_of_the_test_set_differ_are_not_compared(tmp_path):
    one = make_run(tmp_path / "a", patients=30)
    two = make_run(tmp_path / "b", patients=30, seed=1, fingerprint="another")
    assert "2 different test sets" in page_of(one, two).words


def test_image_level_splits_openings_overrides_and_leaks_are_stamped(tmp_path):
    folder = make_run(tmp_path / "run", patients=30, known=False, test_openings=4, overrides=["I looked: <none>"])
    words = page_of(folder).words
    assert "image-level split, optimistic" in words
    assert "The test set was opened 4 times" in words
    assert "I looked: <none>" in words
    assert "over images" in words
    shared = make_run(tmp_path / "shared", patients=30)
    with (shared / "evaluation" / "cases.csv").open(newline="") as file:
        test_patient = next(row["patient"] for row in csv.DictReader(file) if row["part"] == "test")
    first = iter([test_patient])
    rewrite(shared, lambda row: row | {"patient": next(first, row["patient"])})
    assert "1 patients are in validation and in test" in page_of(shared).words


def test_names_of_classes_and_groups_cannot_write_html(tmp_path):
    folder = make_run(
        tmp_path / "run",
        classes=("fine", EVIL),
        patients=30,
        adapter=EVIL,
        modality=EVIL,
        data=[EVIL],
        overrides=[EVIL],
        geomed=EVIL,
        fingerprint=EVIL,
    )
    rewrite(folder, lambda row: row | {"site": EVIL, EVIL: EVIL})
    for kind in ("multiclass", "multilabel", "ordinal"):
        make_run(tmp_path / kind, kind=kind, classes=("fine", EVIL, "<b>"), patients=30, pictures=2)
    for name in ("run", "multiclass", "multilabel", "ordinal"):
        text = report([tmp_path / name], draws=DRAWS)
        assert "<script" not in text
        assert "alert('x')" not in re.sub(r"&\w+;", "", text)
        assert Page(text).open == []


def test_a_class_missing_in_a_group_and_a_small_group_are_told(tmp_path):
    folder = make_run(tmp_path / "run", patients=60, attributes=False)
    rewrite(folder, lambda row: row | {"site": "healthy ward" if row["truth"] == "0" else "other ward"})
    words = page_of(folder).words
    assert "no case is of 'malignant'" in words
    assert "healthy ward" in words


def test_tiny_sets_come_with_warnings_and_without_hollow_intervals(tmp_path):
    words = page_of(make_run(tmp_path / "run", patients=6, images=1)).words
    assert "Few test patients" in words
    assert "1.000 to 1.000" not in words
    assert "all draws agree" in words


def test_without_validation_nothing_is_scaled_and_no_threshold_chosen(tmp_path):
    folder = make_run(tmp_path / "run", patients=30)
    rewrite(folder, lambda row: row | {"part": "test", "case": row["case"] + row["part"]})
    words = page_of(folder).words
    assert "there are no validation cases to fit a temperature on" in words
    assert "there are no validation cases to choose a threshold on" in words


def test_images_without_a_truth_are_left_out_and_counted(tmp_path):
    folder = make_run(tmp_path / "run", kind="multilabel", patients=30)
    rewrite(folder, lambda row: row | ({"truth_nodule": ""} if row["case"] < "1" else {}))
    left = read_run(folder).test.unlabelled
    assert left > 0
    assert f"{left} of 60 test images are left out" in page_of(folder).words


def test_pictures_are_drawn_anew_so_that_metadata_stay_behind(tmp_path):
    folder = make_run(tmp_path / "run", patients=30, pictures=1)
    (path,) = (folder / "evaluation" / "thumbnails").glob("*.png")
    told = PngInfo()
    told.add_text("PatientName", "Doe^Jane")
    Image.fromarray(np.zeros((300, 200), np.uint8)).save(path, pnginfo=told)
    (folder / "evaluation" / "thumbnails" / "Doe_Jane.png").write_bytes(path.read_bytes())
    text = report([folder], draws=DRAWS)
    assert "Doe" not in text
    assert text.count("data:image/jpeg") == 2
    path.write_bytes(b"no picture")
    assert "1 more cannot be shown" not in page_of(folder).words  # a section without pictures is not there


def test_folder_names_stay_off_the_page(tmp_path):
    assert "Doe" not in report([make_run(tmp_path / "Doe_Jane", patients=30)], draws=DRAWS)


def test_runs_are_named_by_what_tells_them_apart(tmp_path):
    runs = [
        read_run(make_run(tmp_path / str(seed), patients=6, seed=seed, adapter=adapter))
        for seed, adapter in enumerate(("LoRA", "LoRA", "BitFit"))
    ]
    assert labels(runs) == ["LoRA, seed 0", "LoRA, seed 1", "BitFit"]
    assert labels([runs[0], runs[0]]) == ["LoRA, run 1", "LoRA, run 2"]
    assert len(set(labels([runs[0], runs[0], runs[1]]))) == 3


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (lambda run: (run / "evaluation" / "cases.csv").unlink(), "no evaluation/cases.csv"),
        (lambda run: (run / "evaluation" / "setup.json").unlink(), "no evaluation/setup.json"),
        (lambda run: (run / "evaluation" / "setup.json").write_text("{"), "cannot be read as JSON"),
        (lambda run: (run / "evaluation" / "setup.json").write_text("[]"), "must be an object"),
        (lambda run: (run / "evaluation" / "setup.json").write_bytes(b"\xff\xfe"), "cannot be read as JSON"),
        (lambda run: (run / "metrics.json").write_text('{"overall": 3}'), "metrics.json cannot be read"),
        (lambda run: edit(run, kind="regression"), "kind in setup.json must be one of"),
        (lambda run: edit(run, classes=["one"]), "cannot have 1 classes"),
        (lambda run: edit(run, test_openings="often"), "test_openings in setup.json must be a whole number"),
        (lambda run: edit(run, split={"image_level": False}), "split.counts in setup.json must be an object"),
        (lambda run: edit(run, classes=["benign", "unheard"]), "no column 'logit_unheard'"),
        (lambda run: (run / "evaluation" / "cases.csv").write_text(""), "cases.csv is empty"),
        (lambda run: (run / "evaluation" / "cases.csv").write_text("case,part\na\n"), "has 1 cells"),
        (lambda run: (run / "evaluation" / "cases.csv").write_bytes(b"\xff\xfe\x00"), "cannot be read as a table"),
        (lambda run: rewrite(run, lambda row: row | {"logit_benign": "high"}), "has no number in 'logit_benign'"),
        (lambda run: rewrite(run, lambda row: row | {"logit_benign": "nan"}), "NaN or infinity"),
        (lambda run: rewrite(run, lambda row: row | {"truth": "7"}), "not in the table"),
        (lambda run: rewrite(run, lambda row: row | {"part": "train"}), "part in cases.csv must be val or test"),
        (lambda run: rewrite(run, lambda row: row | {"part": "val"}), "no test case"),
        (lambda run: rewrite(run, lambda row: row | {"truth": "0"}), "at least two classes"),
        (lambda run: rewrite(run, lambda row: row | {"case": "same"}), "must stand once"),
    ],
)
def test_a_broken_run_is_refused_in_one_line_that_names_it(tmp_path, breaks, said):
    folder = make_run(tmp_path / "run7", patients=6)
    breaks(folder)
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        report([folder], draws=DRAWS)
    assert str(error.value).startswith("run7: ")
    assert "\n" not in str(error.value)
    assert str(tmp_path) not in str(error.value)


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: there is no folder evaluation in it"):
        report([tmp_path / "empty"])
    with pytest.raises(ValueError, match="nowhere: there is no such folder"):
        report([tmp_path / "nowhere"])
    run = make_run(tmp_path / "run", patients=6)
    with pytest.raises(ValueError, match="the same run is given twice"):
        report([run, run])
    with pytest.raises(ValueError, match=r"the folder of page\.html is not there"):
        main([str(run), "--out", str(tmp_path / "none" / "page.html")])


def test_bands_hold_their_curves_and_narrow_with_more_patients(tmp_path):
    widths = []
    for name, patients in (("few", 25), ("many", 400)):
        run = read_run(make_run(tmp_path / name, patients=patients, images=1, skill=0.8))
        bands = CurveBands.of(run.test.predictions, Bootstrap(seed=0, draws=DRAWS))
        assert (bands.roc.low <= bands.roc.high).all()
        assert (bands.precision.low <= bands.precision.high).all()
        assert bands.roc.high[-1] == 1
        widths.append(float((bands.roc.high - bands.roc.low).mean()))
    assert widths[1] < widths[0] / 2


def test_steps_enclose_the_average_precision():
    recall, precision = np.array([0, 0.5, 0.5, 1.0]), np.array([np.nan, 1.0, 0.5, 2 / 3])
    across, up = stepped(recall, precision)
    widths = np.diff(across)
    assert np.sum(widths * up[1:]) == pytest.approx(0.5 * 1.0 + 0.5 * 2 / 3)


def test_a_page_of_many_runs_stays_small(tmp_path):
    runs = [
        make_run(tmp_path / str(seed), patients=30, seed=seed, adapter=f"A{seed}", pictures=12) for seed in range(5)
    ]
    text = report(runs, draws=DRAWS)
    assert len(text) < 2_000_000
    assert "Bands are left out" in Page(text).words


def test_the_same_runs_give_the_same_bytes(tmp_path):
    run = make_run(tmp_path / "run", patients=30)
    assert report([run], draws=DRAWS) == report([run], draws=DRAWS)


def test_patients_are_what_intervals_are_of(tmp_path):
    run = read_run(make_run(tmp_path / "run", patients=30, images=6))
    lone = replace(run.test.predictions, patients=None)
    told = [Bootstrap(seed=0, draws=DRAWS).estimates(one, [AUROC()])[0] for one in (run.test.predictions, lone)]
    widths = [one.interval.high - one.interval.low for one in told]
    assert widths[0] > widths[1]
