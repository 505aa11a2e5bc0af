"""Exported files → callables on batches."""

from __future__ import annotations

import hashlib
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from geomed.mapping.archive import read_program
from geomed.mapping.facts import Facts, Trained
from geomed.mapping.network import autocast, runner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOTE = "geomed"
"""The key in the metadata of an ONNX file under which geomed says what the model is."""

_ORDER = ("values", "valid", "days")


def open_pt2(path: Path, *, device: torch.device, precision: str) -> Trained:
    """A program that `geomed export --to torch-export` wrote.

    Raises:
        ValueError: it is another file, is broken, or holds what could run code.
    """
    program, note = read_program(path)
    facts, told = Facts.loaded(note, where=str(path))
    autocast(device, precision)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own making
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass  # late: only where it is needed

            program = move_to_device_pass(program, device)
        module = program.module(check_guards=False)
    run = _in_shape(runner(module, device=device, precision=precision), facts, told, where=str(path))
    return Trained.of(facts, run, fingerprint=_fingerprint(path, precision), fixed=True)


def open_onnx(path: Path, *, precision: str, threads: int | None = None) -> Trained:
    """A model that `geomed export --to onnx` wrote, run by ONNX Runtime on the CPU, wherever the batches are.

    Raises:
        ValueError: ONNX Runtime is not installed, or the file is another, is broken, or refers to files beside it.
    """
    if precision != "32":
        raise ValueError(f"{path}: an ONNX file computes in the precision it was exported with, 32, not {precision}")
    need_onnx(str(path))
    import onnx  # late: an extra
    import onnxruntime

    content = path.read_bytes()
    try:
        held = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf has an exception of its own, which it does not export
        raise ValueError(f"{path}: not readable as an ONNX file; copy or export it again") from error
    notes = {one.key: one.value for one in held.metadata_props}
    if NOTE not in notes:
        raise ValueError(f"{path}: was not written by geomed export; export the run with it")
    facts, told = Facts.loaded(notes[NOTE], where=str(path))
    _refuse_foreign(held, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has many, none of them documented
        line = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"{path}: ONNX Runtime {onnxruntime.__version__} cannot read it ({line}); export again"
        ) from error
    names = [one.name for one in session.get_inputs()]

    def run(batch: dict[str, Tensor]) -> Tensor:
        given = {name: batch[name].cpu().numpy() for name in names}
        return torch.from_numpy(session.run(None, given)[0]).to(batch["values"].device)

    return Trained.of(
        facts, _in_shape(run, facts, told, where=str(path)), fingerprint=_fingerprint(path, precision), fixed=True
    )


def need_onnx(what: str) -> None:
    """Refuse, where what ONNX needs is not installed.

    Raises:
        ValueError: it is not.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ValueError(f'{what}: ONNX needs {", ".join(missing)}; install with pip install "geomed[onnx]"')


def _refuse_foreign(held: Any, path: Path) -> None:  # noqa: ANN401  (onnx is an extra)
    """Tensors in other files, and operators that are not ONNX's own."""
    domains = sorted({one.domain for one in held.opset_import} - {"", "ai.onnx", "pkg.torch.__SUBGRAPH__"})
    if domains or held.functions:
        raise ValueError(f"{path}: uses operators of {domains or 'its own'}, geomed export writes none; export again")
    pending = [held.graph]
    while pending:
        graph = pending.pop()
        values = [node_value for node in graph.node for node_value in node.attribute]
        pending += [value.g for value in values if value.HasField("g")]
        pending += [one for value in values for one in value.graphs]
        tensors = [*graph.initializer, *(value.t for value in values if value.HasField("t"))]
        tensors += [one for value in values for one in value.tensors]
        if any(one.external_data or one.data_location for one in tensors):
            raise ValueError(f"{path}: refers to tensors in other files, geomed export writes none; export again")


def _in_shape(
    run: Callable[[dict[str, Tensor]], Tensor], facts: Facts, told: dict[str, Any], *, where: str
) -> Callable[[dict[str, Tensor]], Tensor]:
    """Bring batches to the shape that the file was exported for, and cut the answers."""
    window, count, dates = facts.window, told.get("batch"), told.get("dates")
    if not all(one is None or (isinstance(one, int) and one > 0) for one in (count, dates)):
        raise ValueError(f"{where}: what it says of itself is broken (batch {count}, dates {dates}); export again")

    def shaped(batch: dict[str, Tensor]) -> Tensor:
        given = {name: batch[name] for name in _ORDER if name in batch}
        size = tuple(given["values"].shape[-2:])
        if size != (window, window):
            raise ValueError(f"{where}: reads windows of {window} x {window} pixels, not {size[0]} x {size[1]}")
        if ("days" in given) != facts.series:
            raise ValueError(
                f"{where}: reads {'series' if facts.series else 'single images'}, the batch holds the other"
            )
        if dates is not None and facts.series:
            given = _with_dates(given, dates, where)
        if count is None:
            return run(given)
        parts = []
        for start in range(0, len(given["values"]), count):
            some = {name: value[start : start + count] for name, value in given.items()}
            here = len(some["values"])
            if here < count:
                some = {
                    name: torch.cat((value, value[-1:].expand(count - here, *value.shape[1:])))
                    for name, value in some.items()
                }
            parts.append(run(some)[:here])
        return torch.cat(parts)

    return shaped


def _with_dates(given: dict[str, Tensor], dates: int, where: str) -> dict[str, Tensor]:
    """Fill up a series with dates that are not valid."""
    missing = dates - given["values"].shape[1]
    if missing < 0:
        raise ValueError(
            f"{where}: was exported for {dates} dates, the series has {dates - missing}; export it with --dates "
            f"{dates - missing} or more, or without --dates"
        )
    if missing == 0:
        return given
    values, valid, days = (given[name] for name in _ORDER)
    return {
        "values": torch.cat((values, values.new_zeros(len(values), missing, *values.shape[2:])), 1),
        "valid": torch.cat((valid, valid.new_zeros(len(valid), missing, *valid.shape[2:])), 1),
        "days": torch.cat((days, days[:, -1:].expand(-1, missing)), 1),
    }


def _fingerprint(path: Path, precision: str) -> str:
    digest = hashlib.sha256(f"precision {precision}".encode())
    with path.open("rb") as opened:
        while part := opened.read(2**22):
            digest.update(part)
    return digest.hexdigest()
