"""Exported programs from files that nobody vouches for.

`torch.export.load` unpickles sample inputs and some constants, evaluates symbolic sizes as Python, imports what a file
names as kinds of arguments, and executes guards. So no foreign file is given to it: of each, what it may hold is taken
out, checked, and put into a new archive in memory.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOTE = "geomed.json"
"""The member in which geomed says what the program is."""

_TENSORS = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_PROGRAM = "models/model.json"
_SAMPLE = "data/sample_inputs/model.pt"
_LABELS = ("archive_format", "archive_version", "byteorder", ".data/version")
_LEFT_OUT = (_SAMPLE, ".data/serialization_id")
_KNOWN = {
    "": {
        "graph_module",
        "opset_version",
        "range_constraints",
        "schema_version",
        "verifiers",
        "torch_version",
        "guards_code",
    },
    "graph_module": {"graph", "signature", "module_call_graph", "metadata", "treespec_namedtuple_fields"},
}
_WORD = re.compile(r"[A-Za-z0-9_.]*")
_OPERATION = re.compile(
    r"torch\.ops\.aten\.(?!from_file|__)\w+\.\w+|torch\.ops\.aten\.__(and|or|xor)__\.\w+"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|neg|eq|ne|ge|gt|le|lt|and_|or_)"
    r"|torch\.(sym_max|sym_min|sym_not|sym_float|sym_int|sym_ite)"
)
_SYMBOLIC = {"Symbol", "Integer", "Add", "Mul", "Pow", "Max", "Min", "Mod", "Eq", "Ne", "Ge", "Gt", "Le", "Lt", "true"}
_SYMBOLIC |= {
    "false",
    "And",
    "Or",
    "Not",
    "FloorDiv",
    "PythonMod",
    "CleanDiv",
    "CeilDiv",
    "IntTrueDiv",
    "ModularIndexing",
}


def read_program(path: Path) -> tuple[torch.export.ExportedProgram, str]:
    """The program of a ``.pt2`` file and the text that geomed wrote beside it; nothing of the file is executed.

    Raises:
        ValueError: it is no such file, is broken, was not written by `geomed export`, or holds what could run code.
    """
    try:
        with zipfile.ZipFile(path) as opened:
            members = _members(opened, path)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:  # the last of unknown compression
        raise ValueError(f"{path}: not readable as an exported program ({error}); copy or export it again") from error
    if f"extra/{NOTE}" not in members:
        raise ValueError(f"{path}: was not written by geomed export; export the run with it")
    try:
        for name in _CONFIGS:
            members[name] = _tensors_only(members[name], path)
        members[_PROGRAM] = _data_only(members[_PROGRAM], path)
        note = members.pop(f"extra/{NOTE}").decode()
    except (KeyError, TypeError, AttributeError, SyntaxError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: the exported program is broken ({type(error).__name__}: {error}); export again"
        ) from error
    sample = io.BytesIO()
    torch.save(((), {}), sample)
    members[_SAMPLE] = sample.getvalue()
    clean = io.BytesIO()
    with zipfile.ZipFile(clean, "w", zipfile.ZIP_STORED) as written:
        for name, content in members.items():
            written.writestr(f"model/{name}", content)
    clean.seek(0)
    try:
        return torch.export.load(clean), note
    except Exception as error:  # whatever torch raises on sizes and names that do not fit
        line = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"{path}: torch {torch.__version__} cannot read this exported program ({type(error).__name__}: {line}); "
            "export again with this version"
        ) from error


def _members(opened: zipfile.ZipFile, path: Path) -> dict[str, bytes]:
    """The archive's members without the folder that all are in, and without those that are not needed."""
    names = [info.filename for info in opened.infolist()]
    if len(set(names)) < len(names) or len({name.partition("/")[0] for name in names}) != 1:
        raise ValueError(f"{path}: no exported program, its members are not those of one; export again")
    members = {}
    for name in names:
        inner = name.partition("/")[2]
        allowed = (*_CONFIGS, _PROGRAM, *_LABELS, f"extra/{NOTE}")
        if inner in _LEFT_OUT:
            continue
        if inner not in allowed and _TENSORS.fullmatch(inner) is None:
            raise _refused(path, f"a member {inner!r}")
        members[inner] = opened.read(name)  # raises where the checksum differs
    return members


def _refused(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path}: holds {what}, which geomed export does not write and which could run code; it is not read"
    )


def _tensors_only(content: bytes, path: Path) -> bytes:
    """The list of tensors, if all of them lie as plain bytes."""
    config = json.loads(content)
    for name, one in config["config"].items():
        if one["use_pickle"] is not False or re.fullmatch(r"(weight|tensor)_\d+", one["path_name"]) is None:
            raise _refused(path, f"a pickle for {name!r}")
    return json.dumps(config).encode()


def _data_only(content: bytes, path: Path) -> bytes:
    """The program, if it computes with plain operators alone; guards and notes about its source are left out."""
    program = json.loads(content)
    for part, known in _KNOWN.items():
        unknown = sorted(set(program[part] if part else program) - known)
        if unknown:
            raise _refused(path, f"a part {unknown[0]!r} of the program")
    program["guards_code"] = []
    program["torch_version"] = str(torch.__version__)
    program["graph_module"]["metadata"] = {}
    program["graph_module"]["treespec_namedtuple_fields"] = {}
    for key, text in set(_texts(program, "")):
        _check(key, text, path)
    return json.dumps(program).encode()


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:  # noqa: ANN401  (JSON)
    """Every text and every key of a JSON value, with the key that it stands behind; notes are emptied."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one, key)
    elif isinstance(value, dict):
        if "target" in value and "metadata" in value:
            value["metadata"] = {}
        for name, one in value.items():
            yield "", name
            yield from _texts(one, name)


def _check(key: str, text: str, path: Path) -> None:
    if key == "torch_version":
        return
    if key == "target":
        # a parameter's name stands behind this key too, in the signature; only operators have a root that is looked up
        if _OPERATION.fullmatch(text) is None and (
            text.startswith(("torch", "_operator", "math", "#")) or _WORD.fullmatch(text) is None
        ):
            raise _refused(path, f"the operation {text!r}")
    elif key == "expr_str":
        _check_sizes(text, path)
    elif key in {"in_spec", "out_spec"}:
        if re.search(r"enum|fqn|defaultdict|namedtuple|dataclass|Constant", text, re.IGNORECASE):
            raise _refused(path, f"arguments of the kind {text!r}")
    elif key in {"as_custom_obj", "as_operator", "custom_obj"}:
        raise _refused(path, f"an object {text!r}")
    elif not _is_plain(key, text):
        raise _refused(path, f"the name {text!r}")


def _is_plain(key: str, text: str) -> bool:
    """Whether a text cannot become anything else in the Python code that torch makes of the program."""
    if key == "name":
        return not text or text.isidentifier()
    return key in {"as_string", "as_strings"} or _WORD.fullmatch(text) is not None  # torch quotes constants


_SIZES = (
    *(ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword),
    *(ast.UnaryOp, ast.USub, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Pow, ast.FloorDiv, ast.Mod),
)


def _check_sizes(text: str, path: Path) -> None:
    """A symbolic size is made of numbers, symbols and a few functions of them."""
    for node in ast.walk(ast.parse(text, mode="eval")):
        allowed = isinstance(node, _SIZES)
        if isinstance(node, ast.Call):
            allowed = isinstance(node.func, ast.Name) and node.func.id in _SYMBOLIC
        elif isinstance(node, ast.Name):
            allowed = node.id in _SYMBOLIC or re.fullmatch(r"[su]\d+", node.id) is not None
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            allowed = re.fullmatch(r"[a-z]\w*", node.value) is not None
        if not allowed:
            raise _refused(path, f"the size {text!r}")
