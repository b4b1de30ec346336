"""What may be in a `.pt2` archive: checked before `torch.export.load`, which executes some of it.

Read in the sources of PyTorch 2.8 to 2.15. Code can hide in

- pickles: sample inputs, weights and constants that are said to be pickled, `*.pt` members of 2.8, `custom_obj_*`, `opaque_obj_*`;
- compiled programs below `data/`, and a second program in the layout before 2.8, which is read where the first one fails;
- sizes, which go to `sympy.sympify`, and guards, which go to `exec`;
- the functions of nodes, which are looked up by name from `torch` on, and those that read and write files;
- names, which become Python source, and the structure of inputs and outputs, by which modules are imported.

Everything that is not known to be harmless is refused.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from handlers.errors import UsageError
from handlers.model.formats.modules import PICKLE_ADVICE

# The members of an archive, below its root. Those of `extra/` are handed back as they are.
_MEMBERS = re.compile(
    r"archive_format|archive_version|version|byteorder|\.data/[\w.]+|models/\w[\w.\-]*\.json|extra/[\w./\-]+"
    r"|data/sample_inputs/\w[\w.\-]*\.pt"
    r"|data/(weights|constants)/(\w[\w.\-]*_(weights|constants)_config\.json|(weight|tensor)_\d+|\w[\w.\-]*\.pt)"
)
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")

_HIGHER = "cond while_loop map_impl scan associative_scan wrap_with_set_grad_enabled wrap_with_autocast flex_attention"
_SYMBOLIC = "eq ne le ge lt gt neg pos and_ or_ not_ xor mul add sub floordiv mod truediv pow lshift rshift getitem"
_TARGET = re.compile(
    r"torch\.ops\.(?:aten\.(?!from_file\b|save\b|load\b)|prims\.|quantized\.|quantized_decomposed\.|torchvision\."
    r"|torchao\.|mkldnn\.|onednn\.|rngprims\.|profiler\.)\w+(?:\.\w+)?"
    rf"|torch\.ops\.higher_order\.(?:{'|'.join(_HIGHER.split())}|invoke_subgraph|auto_functionalized(?:_v2)?)"
    rf"|_operator\.(?:{'|'.join(_SYMBOLIC.split())})|math\.[a-z0-9]+|torch\._?sym_\w+"
)
_WORDS = re.compile(r"[\w.\-/ :@+]*")  # without brackets, quotes and `=`, a name cannot become more than a name
_FREE = frozenset(("as_string", "as_strings", "torch_version", "verifiers"))  # kept, or written as literals

# What a symbolic size may contain in addition to numbers, names, words and calls of sympy's classes.
ARITHMETIC = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Tuple, ast.keyword, ast.Name),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context),
)
_OF_TENSORS = ("size", "stride", "storage_offset", "dim", "numel")


def check_archive(file: Path, stream: IO[bytes]) -> None:
    """Refuses an archive of which a part could run code while it is loaded or called.

    It is read with the reader that torch.export.load will use, so that both see the same members. Pickles of sample
    inputs, weights and constants are left to `weights_only`.

    Args:
        file: for messages.
        stream: its contents; the same that will be loaded.

    Raises:
        UsageError: with what it is refused for.
    """
    reader = torch._C.PyTorchFileReader(stream)
    records = reader.get_all_records()
    if "archive_format" not in records:  # what came before it is a zip file of another layout, read by other code
        raise UsageError(f"{file} is not a program of torch.export.save, or is of a torch before 2.8; export it again")
    stream.seek(0)
    with zipfile.ZipFile(stream) as archive:
        names = archive.namelist()
    root = names[0].partition("/")[0] + "/"
    if {name.removeprefix(root) for name in names if name.startswith(root)} != set(records) or len(names) != len(
        records
    ):
        raise UsageError(f"{file} is refused: it holds files other than those of one program; export it again")
    for name, expected in (("archive_format", b"pt2"), ("archive_version", b"0")):
        if name not in records or reader.get_record(name) != expected:
            raise UsageError(f"{file} is refused: its {name} is not known, export it with another torch")
    for record in records:
        if record.startswith("data/aotinductor/") or record.endswith(".so"):
            raise UsageError(f"{file} is refused: it holds compiled code ({record}); export it with torch.export.save")
        if record.rpartition("/")[2].startswith(("opaque_obj_", "custom_obj_")):
            raise UsageError(f"{file} is refused ({record}): {PICKLE_ADVICE}")
        if not _MEMBERS.fullmatch(record):
            raise UsageError(f"{file} is refused: what {record[:100]!r} in it is, is not known")
        if record.startswith("data/") and record.endswith("_config.json"):
            _check_payloads(file, json.loads(reader.get_record(record))["config"])
        if record.startswith("models/"):
            _check_program(file, json.loads(reader.get_record(record)), "")


def _check_payloads(file: Path, config: dict[str, Any]) -> None:
    for name, payload in config.items():
        path = str(payload["path_name"])
        if path.startswith(("opaque_obj_", "custom_obj_")):
            raise UsageError(f"{file} is refused ({path}): {PICKLE_ADVICE}")
        if not _PAYLOAD.fullmatch(path) or not _WORDS.fullmatch(name):
            raise UsageError(f"{file} is refused: what the tensor {name[:80]!r} in {path[:80]!r} is, is not known")


def _check_program(file: Path, value: Any, field: str) -> None:
    """Checks all text in a program; `field` is the name of the field that contains `value`."""
    if isinstance(value, dict):
        for name, item in value.items():
            if field == "metadata" and isinstance(item, str):
                continue  # where a node came from, for people
            _check_text(file, "name", name)
            _check_program(file, item, name)
    elif isinstance(value, list):
        for item in value:
            _check_program(file, item, field)
    elif isinstance(value, str):
        _check_text(file, field, value)


def _check_text(file: Path, field: str, text: str) -> None:
    if field in ("in_spec", "out_spec"):
        _check_structure(file, json.loads(text) if text else None)
    elif field not in _FREE and not _CHECKS.get(field, _is_word)(text):
        what = _NAMED.get(field, f"the {field} {{}} in it is not a plain name")
        raise UsageError(f"{file} is refused: {what.format(repr(text[:80]))}")


def _check_structure(file: Path, value: Any) -> None:
    """Checks the structure of inputs or outputs, which is JSON nested in JSON."""
    if isinstance(value, dict):
        for name, item in value.items():
            inside = name == "context" and isinstance(item, str)
            _check_structure(file, [name, json.loads(item) if inside else item])
    elif isinstance(value, list):
        for item in value:
            _check_structure(file, item)
    elif isinstance(value, str) and ("defaultdict" in value or "__enum__" in value or not _is_word(value)):
        raise UsageError(f"{file} is refused: {value[:80]!r} in the structure of its inputs or outputs is not known")


def _is_word(text: str) -> bool:
    return _WORDS.fullmatch(text) is not None


def _is_arithmetic(function: str) -> bool:
    """Whether sympy's `function` builds a number: its classes do, whose names are capitalised; parsers and plots are not."""
    return function[0].isupper() or function in ("floor", "ceiling")


def _is_size(text: str) -> bool:
    """Whether a symbolic size is arithmetic: torch hands it to sympy, which evaluates it as Python."""
    for node in _parsed(text):
        named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and _is_arithmetic(node.func.id)
        if not (named or _is_plain(node) or isinstance(node, ARITHMETIC)):
            return False
    return True


def _is_guard(text: str) -> bool:
    """Whether a guard compares sizes of inputs (`L['x'].size()[0] >= 2`): torch makes Python source of it."""
    for node in _parsed(text):
        if isinstance(node, ast.Call):
            function = node.func
            method = isinstance(function, ast.Attribute) and function.attr in _OF_TENSORS and not node.args
            named = isinstance(function, ast.Name) and _is_arithmetic(function.id)
            if node.keywords or not (method or named):
                return False
        elif isinstance(node, ast.Attribute):
            if node.attr not in _OF_TENSORS:
                return False
        elif not (_is_plain(node) or isinstance(node, (*ARITHMETIC, ast.Subscript))):
            return False
    return "#" not in text and "\n" not in text


def _is_plain(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and re.fullmatch(r"\w*", str(node.value).replace(".", "")) is not None


def _parsed(text: str) -> list[ast.AST]:
    """The nodes of an expression; a string constant, which is refused, if it is not an expression."""
    try:
        return list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError):
        return [ast.Constant("not an expression")]


_CHECKS: dict[str, Callable[[str], bool]] = {
    "target": lambda text: _TARGET.fullmatch(text) is not None,
    "as_operator": lambda text: _TARGET.fullmatch(text) is not None,
    "expr_str": _is_size,
    "guards_code": _is_guard,
}
_NAMED = {
    "target": "it calls {}, which is not a known operator on tensors; use a loader for others",
    "as_operator": "it calls {}, which is not a known operator on tensors; use a loader for others",
    "expr_str": "the size {} in it is not arithmetic",
    "guards_code": "the guard {} in it is not a comparison of sizes",
}
