from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from geomed.evaluation.comparison import CropArea, CropSeasons, Maps, Row, Season
from geomed.evaluation.pictures import class_map, outcomes, photograph
from geomed.evaluation.report import Report, write_report
from geomed.palette import APART, palette

CLASSES = ("Maize", "Winter wheat", "Grass <b>&amp;</b>")
VOID = {"meta", "img", "circle", "line", "polyline", "polygon"}
EVIL = '<script>alert("x")</script>\'&'


class Page(HTMLParser):
    """Walks a page, remembers what is open, what was fetched and what is read."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.fetched, self.words = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]
        if tag == "img":
            assert dict(attrs)["alt"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def make_season(shift):
    days = np.arange(-40, 300, 20)
    mean = 0.2 + 0.6 * np.exp(-(((days - 180 - shift) / 50) ** 2))
    mean[3] = np.nan
    return Season(days=days, mean=mean, lower=mean - 0.05, upper=mean + 0.05)


def make_maps(side=24, seed=0):
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, 3, (side, side))
    truth[0] = 255
    before, after = (
        np.where(draw.random((side, side)) < keep, truth % 3, draw.integers(0, 3, (side, side))) for keep in (0.2, 0.9)
    )
    picture = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Maps(true_colour=picture, truth=truth, before=before, after=after, metres=10.0)


def make_row(name, trained, score, **more):
    return Row(
        name=name,
        trained_parameters=trained,
        trained_share=trained / 2e6,
        macro_f1=score,
        accuracy=0.876,
        iou=0.543,
        **more,
    )


@pytest.fixture
def report():
    return Report(
        title="From Upland to Lowland",
        summary="One paragraph.",
        command="geomed demo --out out",
        rows=(
            make_row(
                "LoRA", 12_345, 0.8125, seconds=75.4, adapter_bytes=54_321, interval=(0.7912, 0.8341), note="rank 4"
            ),
            make_row("BitFit", 4_321, 0.7654, seconds=9.87, adapter_bytes=999),
        ),
        best="LoRA",
        unadapted=make_row("Unadapted", 0, 0.4567),
        scratch=make_row("From scratch", 2_000_000, 0.6011, seconds=7_265.0),
        full=make_row("Full fine-tuning", 2_000_000, 0.8222, seconds=180.0, adapter_bytes=8_000_000),
        classes=CLASSES,
        confusion_before=np.array([[50, 30, 20], [40, 1_001, 9], [10, 20, 70]]),
        confusion_after=np.array([[90, 6, 4], [5, 1_041, 4], [3, 7, 90]]),
        source="Upland 2021",
        target="Lowland 2022",
        maps=make_maps(),
        seasons=tuple(CropSeasons(crop=name, source=make_season(0), target=make_season(-20)) for name in CLASSES),
        areas=(CropArea(crop="Maize", truth=12.3, mapped=11.7), CropArea(crop="Winter wheat", truth=0.0, mapped=4.4)),
        facts={"Dates": "41"},
        versions={"PyTorch": "2.11.0"},
        notes=("A limit.",),
        simulated=True,
    )


def written(folder, report):
    path = folder / "report.html"
    write_report(path, report)
    assert [file.name for file in folder.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_the_page_is_balanced_and_needs_nothing_else(tmp_path, report):
    text = written(tmp_path, report)
    page = Page(text)
    assert page.open == []
    assert len(page.fetched) == 5
    assert all(source.startswith("data:image/png;base64,") for source in page.fetched)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert len(text) < 3_000_000


def test_every_number_and_word_given_appears(tmp_path, report):
    words = " ".join(" ".join(Page(written(tmp_path, report)).words).split())
    given = (
        "From Upland to Lowland|One paragraph.|geomed demo --out out|Upland 2021|Lowland 2022|41|2.11.0|A limit.|rank 4"
    )
    given += "|LoRA|BitFit|Unadapted|From scratch|Full fine-tuning|Maize|Winter wheat|Simulated data."
    given += "|12,345|4,321|2,000,000|0.62 %|0.22 %|100.0 %|81.2|76.5|45.7|60.1|82.2|87.6|54.3|79.1–83.4"
    given += "|1 min 15 s|9.9 s|2 h 01 min|3 min 00 s|54.3 kB|999 bytes|8.0 MB|+35.6 points|98.8 %"
    given += "|1,001|1,041|30|90|12.3|11.7|4.4|−4.9 %|1,250"  # noqa: RUF001  (the page sets a minus sign)
    assert [part for part in given.split("|") if part not in words] == []


def test_text_is_escaped_wherever_it_comes_from(tmp_path, report):
    evil = replace(
        report,
        title=EVIL,
        summary=EVIL,
        command=EVIL,
        source=EVIL,
        target=EVIL,
        rows=(replace(report.rows[0], name=EVIL, note=EVIL),),
        best=EVIL,
        unadapted=replace(report.unadapted, name="u" + EVIL, note=EVIL),
        classes=(EVIL, "a" + EVIL, "b" + EVIL),
        seasons=(replace(report.seasons[0], crop=EVIL),),
        areas=(replace(report.areas[0], crop=EVIL),),
        facts={EVIL: EVIL},
        versions={EVIL: EVIL},
        notes=(EVIL,),
    )
    text = written(tmp_path, evil)
    page = Page(text)
    assert "<script" not in text
    assert page.open == []
    assert sum(EVIL in word for word in page.words) > 20


def test_the_same_report_gives_the_same_bytes(tmp_path, report):
    first = written(tmp_path, report)
    assert written(tmp_path, report) == first
    assert written(tmp_path, replace(report, maps=make_maps())) == first


def test_a_bare_report_and_one_pixel(tmp_path, report):
    bare = replace(
        report,
        maps=None,
        seasons=(),
        areas=(),
        facts={},
        versions={},
        notes=(),
        scratch=None,
        full=None,
        simulated=False,
    )
    page = Page(written(tmp_path, bare))
    assert "img" not in page.tags
    assert not any("Simulated" in word for word in page.words)
    pixel = np.zeros((1, 1), dtype=np.uint8)
    one = Maps(
        true_colour=np.zeros((1, 1, 3), dtype=np.uint8), truth=pixel + 255, before=pixel, after=pixel, metres=10.0
    )
    assert len(Page(written(tmp_path, replace(bare, maps=one))).fetched) == 5


def test_a_page_of_large_maps_stays_small(tmp_path, report):
    text = written(tmp_path, replace(report, maps=make_maps(side=1500)))  # noise: the worst for PNG
    assert len(text) < 3_000_000
    assert "one pixel in 3" in text


def test_many_classes_fit(tmp_path, report):
    names = tuple(f"class {at}" for at in range(20))
    many = replace(
        report,
        classes=names,
        confusion_before=np.full((20, 20), 5),
        confusion_after=np.eye(20, dtype=int) * 100,
        maps=None,
        seasons=(),
        areas=(),
    )
    assert sum("class 19" in word for word in Page(written(tmp_path, many)).words) == 5


def test_outcomes_name_what_adaptation_did():
    truth, before, after = np.array([[0, 0, 0, 0, 255]]), np.array([[0, 1, 1, 0, 0]]), np.array([[0, 0, 1, 1, 0]])
    assert outcomes(truth, before, after, ignore=255).tolist() == [[0, 1, 2, 3, -1]]


def test_pictures_refuse_a_class_without_a_colour_and_take_narrow_rasters():
    with pytest.raises(ValueError, match="class index 7 has no colour"):
        class_map(np.array([[0, 7]]), palette(CLASSES), ignore=255)
    assert photograph(np.zeros((2000, 1, 3), dtype=np.uint8)).startswith("data:image/png")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"best": "DoRA"}, "best must name one of the rows"),
        ({"unadapted": make_row("LoRA", 0, 0.5)}, "LoRA stands twice"),
        ({"confusion_before": np.eye(3, dtype=int)}, "count the same pixels"),
        ({"classes": CLASSES[:2]}, "3 rows, 2 classes"),
        ({"areas": (CropArea(crop="Rye", truth=1.0, mapped=1.0),)}, "not Rye"),
    ],
)
def test_refuses_parts_that_do_not_belong_together(report, change, said):
    with pytest.raises(ValueError, match=said):
        replace(report, **change)


def test_refuses_wrong_values(report):
    with pytest.raises(ValueError, match=r"macro_f1 must be a share between 0 and 1, not 81\.2; divide percent"):
        make_row("LoRA", 1, 81.2)
    with pytest.raises(ValueError, match="must be a share"):
        make_row("LoRA", 1, float("nan"))
    with pytest.raises(ValueError, match="swap the two"):
        make_row("LoRA", 1, 0.5, interval=(0.6, 0.4))
    with pytest.raises(ValueError, match="read the same window"):
        replace(report.maps, before=report.maps.before[1:])
    with pytest.raises(ValueError, match="sort the dates"):
        replace(report.seasons[0].source, days=np.zeros(17, dtype=int))
    with pytest.raises(ValueError, match="hectares must be 0 or more"):
        CropArea(crop="Maize", truth=float("nan"), mapped=1.0)


def test_palette_knows_crops_and_keeps_all_classes_apart():
    names = [
        "Background", "Meadow", "Soft winter wheat", "Corn", "Winter barley", "Winter rapeseed", "Spring barley",
        "Sunflower",
        "Grapevine", "Beet", "Winter triticale", "Winter durum wheat", "Fruits, vegetables, flowers", "Potatoes",
        "Leguminous fodder", "Soybeans", "Orchard", "Mixed cereal", "Sorghum", "Void label",
    ]  # fmt: skip
    colours = np.array(palette(names), dtype=float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)[~np.eye(len(names), dtype=bool)]
    assert distances.min() >= APART
    assert palette(["maize"]) == palette(["Corn"]) == palette(["grain_maize"])
    assert palette(["rapeseed"]) != palette(["grapevine"])
    assert palette(["water", "lesion"])[0] == palette(["lesion", "water"])[1]
    assert len(set(palette([f"class {at}" for at in range(256)]))) == 256


def test_palette_refuses_doubles_and_too_many():
    with pytest.raises(ValueError, match="maize stands twice"):
        palette(["maize", "maize"])
    with pytest.raises(ValueError, match="at most 256"):
        palette([str(at) for at in range(257)])
