"""`geomed demo scans` runs from patients to page without any download."""

import json

import pytest
from safetensors import safe_open

from geomed.cli import main
from geomed.demo.scans_experiment import AWAY, HOME, METHODS

# Lightning's own advice and deprecations are the user's to see, no faults of these tests.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    assert main(["demo", "scans", "--out", str(out), "--fast"]) == 0
    return out


def test_every_method_has_a_run_and_a_row(made):
    rows = {row["name"]: row for row in json.loads((made / "metrics.json").read_text())["methods"]}
    assert list(rows) == [method.name for method in METHODS]
    for method in METHODS:
        run = made / "runs" / method.folder
        own = json.loads((run / "metrics.json").read_text())
        assert own["overall"]["AUROC"]["value"] == pytest.approx(rows[method.name]["auroc"]["value"])
        assert own["calibration"]["ece_after"] == pytest.approx(rows[method.name]["ece_scaled"])
        assert (run / "adapter.safetensors").exists() == bool(method.adapters)
    assert rows["Linear probe"]["trained_parameters"] < rows["LoRA"]["trained_parameters"]
    assert rows["LoRA"]["trained_parameters"] < rows["Full fine-tuning"]["trained_parameters"]


def test_the_page_says_what_it_is_and_names_every_method(made):
    page = (made / "report.html").read_text()
    for word in ("simulated photographs of retinas", "linear probe", "LoRA", "DVPT", "CNN", "all weights"):
        assert word in page
    assert "no patient is in two" in page
    assert "<script" not in page


def test_the_chosen_adapter_is_kept_with_its_classes(made):
    chosen = json.loads((made / "metrics.json").read_text())["chosen"]
    kept = (made / "adapter.safetensors").read_bytes()
    assert kept == (made / "runs" / chosen.lower() / "adapter.safetensors").read_bytes()
    with safe_open(made / "adapter.safetensors", framework="pt") as file:
        assert "referable" in json.dumps(file.metadata())


def test_patients_of_the_base_are_not_among_those_adapted_to(made):
    home, away = (
        {line.split(",")[1] for line in (made / "cohort" / name / "table.csv").read_text().splitlines()[1:]}
        for name in ("home", "away")
    )
    assert home
    assert not home & away
    assert HOME.name not in {site.name for site in AWAY}


def test_the_key_of_the_names_is_in_no_run(made):
    key = (made / "cohort" / "key").read_bytes()
    assert all(key not in path.read_bytes() for path in (made / "runs").rglob("*") if path.is_file())


def test_the_other_demo_stays_as_it_is(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    told = capsys.readouterr().out
    assert "geomed demo [-h]" in told
    assert "geomed demo scans" in told
