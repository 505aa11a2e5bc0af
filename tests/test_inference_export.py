from __future__ import annotations

import gc
import importlib.util
import io
import json
import pickle
import zipfile
from pathlib import Path

import jaxtyping
import onnx
import pytest
import torch
from made_runs import answer, batch_of, make_run

from geomed.mapping import export as exporting
from geomed.mapping import model_files
from geomed.mapping.export import Export, export, main
from geomed.mapping.facts import Facts
from geomed.mapping.models import load_model
from geomed.mapping.runs import open_run

CPU = torch.device("cpu")
MODELS = [("ViT", "LoRA"), ("ViT", "AdaptFormer"), ("TSViT", "LoRA")]
ENDINGS = {"torch-export": ".pt2", "onnx": ".onnx"}


@pytest.fixture(scope="module", autouse=True)
def _no_shape_checks():
    """An export has symbols where the checks want numbers."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)  # noqa: FBT003  (its signature)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
    gc.collect()  # what a failed export leaves


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(kind, adapter, to) → run's folder, its network, exported file; each made once."""
    made = {}

    def of(kind: str, adapter: str, to: str):
        if (kind, adapter) not in made:
            made[kind, adapter] = make_run(tmp_path_factory.mktemp("runs") / "run", kind, adapter)
        folder, network = made[kind, adapter]
        if (kind, adapter, to) not in made:
            out = folder / f"model{ENDINGS[to]}"
            assert export(folder, out, Export(to=to)) < 1e-5
            made[kind, adapter, to] = out
        return folder, network, made[kind, adapter, to]

    return of


@pytest.mark.parametrize(("kind", "adapter"), MODELS)
@pytest.mark.parametrize("to", ENDINGS)
def test_an_exported_file_answers_as_the_run(exported, kind, adapter, to):
    folder, network, path = exported(kind, adapter, to)
    trained = load_model(path, device=CPU)
    for count, dates in ((1, 1), (2, 3), (5, 2), (3, 7)):
        batch = batch_of(kind, count, dates, seed=count)
        logits = trained.model.run(batch)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, answer(network, batch), atol=1e-4, rtol=1e-4)
        unseen = {**batch, "valid": torch.zeros_like(batch["valid"])}
        torch.testing.assert_close(trained.model.run(unseen), answer(network, unseen), atol=1e-4, rtol=1e-4)
    run = load_model(folder, device=CPU)
    assert trained.model.fixed
    assert trained.model.fingerprint != run.model.fingerprint
    assert trained.model.about == {**run.model.about, "file": to}
    for name in ("bands", "classes", "series", "window", "patch", "units"):
        assert getattr(trained.model, name) == getattr(run.model, name)
    assert (trained.masks, trained.min_clear, trained.band_names) == (run.masks, run.min_clear, run.band_names)
    for told in (str(folder), str(Path(exporting.__file__).parents[2])):
        assert told.encode() not in path.read_bytes()


@pytest.mark.parametrize("to", ENDINGS)
def test_an_exported_file_refuses_what_it_was_not_made_for(exported, to):
    model = load_model(exported("TSViT", "LoRA", to)[2], device=CPU).model
    with pytest.raises(ValueError, match="reads windows of 8 x 8 pixels, not 16 x 16"):
        model.run(batch_of("TSViT", side=16))
    with pytest.raises(ValueError, match="reads series, the batch holds the other"):
        model.run(batch_of("ViT", side=8))


@pytest.mark.parametrize("to", ENDINGS)
def test_a_file_of_one_shape_fills_up_and_cuts(tmp_path, to):
    folder, network = make_run(tmp_path / "run", "TSViT", "LoRA")
    out = tmp_path / f"model{ENDINGS[to]}"
    export(folder, out, Export(to=to, batch=2, dates=4))
    model = load_model(out, device=CPU).model
    for count, dates in ((1, 4), (2, 2), (5, 3)):
        batch = batch_of("TSViT", count, dates)
        torch.testing.assert_close(model.run(batch), answer(network, batch), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="was exported for 4 dates, the series has 5"):
        model.run(batch_of("TSViT", 2, 5))


@pytest.mark.parametrize("kind", ["ViT", "TSViT"])
def test_half_precision_of_a_program(exported, kind):
    _, network, path = exported(kind, "LoRA", "torch-export")
    batch = batch_of(kind)
    logits = load_model(path, device=CPU, precision="bf16").model.run(batch)
    assert 0 < float((logits - answer(network, batch)).abs().max()) < 0.2
    with pytest.raises(ValueError, match="in the precision it was exported with, 32, not bf16"):
        load_model(exported("ViT", "LoRA", "onnx")[2], device=CPU, precision="bf16")


@pytest.mark.parametrize("kind", ["ViT", "TSViT"])
def test_all_of_a_program_goes_to_the_device(exported, kind):
    path = exported(kind, "LoRA", "torch-export")[2]
    meta = torch.device("meta")
    batch = {name: value.to(meta) for name, value in batch_of(kind).items()}
    assert load_model(path, device=meta).model.run(batch).device == meta


def test_facts_come_back(exported):
    run = open_run(exported("TSViT", "LoRA", "onnx")[0])
    back, told = Facts.loaded(run.facts.dumped(batch=3), where="here")
    assert back == run.facts
    assert told["batch"] == 3
    assert len(told["colours"]) == 3
    for text in ("", "[]", "{}", '{"format": 1}', '{"format": 1, "bands": []}'):
        with pytest.raises(ValueError, match=r"here: what (geomed export writes|it says of itself)"):
            Facts.loaded(text, where="here")
    with pytest.raises(ValueError, match="of format 2, this geomed reads 1"):
        Facts.loaded('{"format": 2}', where="here")


def test_the_command(exported, tmp_path, capsys):
    folder, network, _ = exported("ViT", "AdaptFormer", "torch-export")
    out = tmp_path / "deep/er/model.pt2"
    words = ["--model", str(folder), "--to", "torch-export", "--out", str(out), "--batch", "dynamic", "--window", "24"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "probabilities differ from the run's by" in told
    assert [path.name for path in out.parent.iterdir()] == ["model.pt2"]
    model = load_model(out, device=CPU).model
    assert model.window == 24
    batch = batch_of("ViT", side=24)
    torch.testing.assert_close(model.run(batch), answer(network, batch), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--out", "model.onnx"], "--out must end in .pt2 for --to torch-export, not model.onnx"),
        (["--window", "0"], "window must be positive, not 0"),
        (["--batch", "some"], "invalid"),
        (["--dates", "3"], "--dates is for models that read series"),
        (["--to", "jit"], "invalid choice"),
        (["--window", "25"], "no multiple of the patch of 4; choose --window 28"),
        (["--model", "nowhere"], "nowhere: there is no such run"),
    ],
)
def test_bad_options_are_told(exported, tmp_path, words, told, monkeypatch):
    folder = exported("ViT", "LoRA", "torch-export")[0]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=told):
        main(["--model", str(folder), "--to", "torch-export", "--out", "model.pt2", *words])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", ["LARGEST", "_save_program"])
def test_what_does_not_answer_as_the_run_leaves_no_file(exported, tmp_path, monkeypatch, fault):
    def fail(*_):
        raise RuntimeError("no\nsuch operator")

    folder = exported("ViT", "LoRA", "torch-export")[0]
    monkeypatch.setattr(exporting, fault, -1.0 if fault == "LARGEST" else fail)
    with pytest.raises(ValueError, match=r"differ from the run's by|cannot be exported to torch-export .*: no\); map"):
        export(folder, tmp_path / "model.pt2", Export(to="torch-export"))
    assert not list(tmp_path.iterdir())


def test_without_onnx_the_way_out_is_told(exported, tmp_path, monkeypatch):
    folder, _, path = exported("ViT", "LoRA", "onnx")
    found = importlib.util.find_spec
    monkeypatch.setattr(model_files, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    for attempt in (
        lambda: load_model(path, device=CPU),
        lambda: export(folder, tmp_path / "model.onnx", Export(to="onnx")),
    ):
        with pytest.raises(ValueError, match=r'ONNX needs onnxruntime; install with pip install "geomed\[onnx\]"'):
            attempt()


@pytest.mark.parametrize("to", ENDINGS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_told_in_one_line(exported, tmp_path, to, share):
    whole = exported("ViT", "LoRA", to)[2].read_bytes()
    path = tmp_path / f"cut{ENDINGS[to]}"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"^[^\n]*cut[^\n]*(not readable as|was not written by|cannot read)[^\n]*$"):
        load_model(path, device=CPU)


def test_foreign_files_are_told_in_one_line(tmp_path):
    linear = torch.nn.Linear(2, 2)
    torch.export.save(torch.export.export(linear, (torch.zeros(1, 2),)), tmp_path / "a.pt2")
    torch.save({"a": 1}, tmp_path / "b.pt2")
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y])), tmp_path / "c.onnx")
    for name, told in (("a.pt2", "was not written by geomed"), ("b.pt2", "a member"), ("c.onnx", "was not written by")):
        with pytest.raises(ValueError, match=rf"^[^\n]*{name}[^\n]*{told}[^\n]*$"):
            load_model(tmp_path / name, device=CPU)


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def _pickled(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Bomb(mark), buffer)
    return buffer.getvalue()


def _rewritten(path: Path, out: Path, change) -> Path:
    """The archive with what ``change`` makes of its members."""
    with zipfile.ZipFile(path) as opened:
        root = opened.namelist()[0].partition("/")[0]
        members = {name.partition("/")[2]: opened.read(name) for name in opened.namelist()}
    change(members)
    with zipfile.ZipFile(out, "w") as written:
        for name, content in members.items():
            written.writestr(f"{root}/{name}", content)
    return out


def _program(change):
    def of(members, _mark):
        program = json.loads(members["models/model.json"])
        change(program)
        members["models/model.json"] = json.dumps(program).encode()

    return of


def _weights(**more):
    def of(members, mark):
        name = "data/weights/model_weights_config.json"
        config = json.loads(members[name])
        first = next(iter(config["config"].values()))
        first.update(more)
        members[name] = json.dumps(config).encode()
        members["data/weights/weight_0"] = _pickled(mark)

    return of


def _opaque(members, mark):
    config = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    members["data/constants/model_constants_config.json"] = json.dumps({"config": {"a": config}}).encode()
    members["data/constants/opaque_obj_0"] = pickle.dumps(Bomb(mark))


def _size(text):
    def change(program):
        value = program["graph_module"]["graph"]["tensor_values"]["values"]
        value["sizes"][0] = {"as_expr": {"expr_str": text, "hint": {"as_int": 2}}}

    return _program(change)


def _node(**more):
    return _program(lambda program: program["graph_module"]["graph"]["nodes"][3].update(more))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_weights(use_pickle=True), "a pickle for"),
        (_weights(path_name="../../x"), "a pickle for"),
        (_opaque, "a member 'data/constants/opaque_obj_0'"),
        (lambda members, mark: members.update({"data/weights/model.pt": _pickled(mark)}), "a member"),
        (lambda members, _: members.update({"data/aotinductor/model/a.so": b""}), "a member"),
        (_size("__import__('pathlib').Path('MARK').touch() or 2"), "the size"),
        (_size("Symbol('s0').__class__"), "the size"),
        (_size("exec('1')"), "the size"),
        (_node(target="torch.hub.load"), "the operation 'torch.hub.load'"),
        (_node(target="torch.ops.aten.from_file.default"), "the operation"),
        (_node(target="_operator.methodcaller"), "the operation"),
        (_node(target="#extension:os.system"), "the operation"),
        (_node(name="x = exec('1')"), "the name"),
        (_node(name="torch.load"), "the name"),
        (_program(lambda program: program.update(hooks=["print(1)"])), "a part 'hooks'"),
        (
            _program(
                lambda program: program["graph_module"]["module_call_graph"][0]["signature"].update(
                    in_spec='[1, {"type": "builtins.dict", "context": {"__enum__": true, "fqn": "antigravity:x"}}]'
                )
            ),
            "arguments of the kind",
        ),
    ],
)
def test_a_program_that_could_run_code_is_refused(exported, tmp_path, change, told):
    mark = tmp_path / "MARK"
    path = exported("TSViT", "LoRA", "torch-export")[2]
    bad = _rewritten(path, tmp_path / "bad.pt2", lambda members: change(members, mark))
    with pytest.raises(ValueError, match=rf"^[^\n]*bad.pt2: holds {told}[^\n]*could run code; it is not read$"):
        load_model(bad, device=CPU)
    assert not mark.exists()


def test_what_is_not_needed_of_a_program_is_never_looked_at(exported, tmp_path):
    def change(members):
        members["data/sample_inputs/model.pt"] = _pickled(tmp_path / "MARK")
        program = json.loads(members["models/model.json"])
        program["guards_code"] = [f"__import__('pathlib').Path({str(tmp_path / 'MARK')!r}).touch()"]
        members["models/model.json"] = json.dumps(program).encode()

    _, network, path = exported("TSViT", "LoRA", "torch-export")
    batch = batch_of("TSViT")
    model = load_model(_rewritten(path, tmp_path / "odd.pt2", change), device=CPU).model
    torch.testing.assert_close(model.run(batch), answer(network, batch), atol=1e-4, rtol=1e-4)
    assert not (tmp_path / "MARK").exists()


def test_onnx_files_that_refer_to_others_are_refused(exported, tmp_path):
    path = exported("ViT", "LoRA", "onnx")[2]
    held = onnx.load(path)
    (tmp_path / "beside.bin").write_bytes(b"\0" * 4096)
    tensor = held.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="beside.bin")
    (tmp_path / "a.onnx").write_bytes(held.SerializeToString())
    with pytest.raises(ValueError, match="refers to tensors in other files"):
        load_model(tmp_path / "a.onnx", device=CPU)
    held = onnx.load(path)
    held.opset_import.add(domain="evil", version=1)
    (tmp_path / "b.onnx").write_bytes(held.SerializeToString())
    with pytest.raises(ValueError, match=r"uses operators of \['evil'\]"):
        load_model(tmp_path / "b.onnx", device=CPU)
