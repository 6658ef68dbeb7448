"""Docstrings of public functions with arrays in their signature give shapes and dtypes."""

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("interaction", "experiments", "pallas_kernels")
_ARRAY = re.compile(r"\b(Array|ndarray)\b")
# `float32[b, t, d]`, `[..., k]`, `[]`; an interval such as "in [0, 1]" or "[-1, 1]" is no shape.
_SHAPE = re.compile(r"(?<!\bin )\[(?!-)[^\[\]:\"']*\]")
_DTYPE = re.compile(
    r"\b(b?float(16|32|64)?|bfloat16|complex64|u?int(8|16|32|64)?|bool|dtypes?|PRNG keys?)\b"
)
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def rooms() -> dict[str, list[pathlib.Path]]:
    """Public modules of each folder with code: "interaction/ops" and its files."""
    found: dict[str, list[pathlib.Path]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if not path.name.startswith("_"):
                found.setdefault(path.parent.relative_to(ROOT).as_posix(), []).append(path)
    return found


ROOMS = rooms()


def public_functions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, _Function]]:
    """Public functions and methods, `__call__` among them, under their dotted names."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, _Function) and (
            not node.name.startswith("_") or node.name == "__call__"
        ):
            yield prefix + node.name, node


def has_arrays(node: _Function) -> bool:
    """Whether an annotation of an argument or of the result mentions an array."""
    arguments = node.args
    given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    annotations = [one.annotation for one in (*given, arguments.vararg, arguments.kwarg) if one]
    return any(
        one is not None and _ARRAY.search(ast.unparse(one)) for one in (*annotations, node.returns)
    )


def missing(node: _Function) -> list[str]:
    """What the docstring of a function with arrays lacks."""
    text = ast.get_docstring(node)
    if text is None:
        return ["docstring"]
    text = " ".join(text.split())
    parts = {"shape": _SHAPE, "dtype": _DTYPE}
    return [name for name, pattern in parts.items() if not pattern.search(text)]


def offenders(path: pathlib.Path) -> list[str]:
    """A line for each public function of a file whose docstring lacks a shape or a dtype."""
    return [
        f"{path.name}:{node.lineno} {name}: no {' and no '.join(lacks)}"
        for name, node in public_functions(ast.parse(path.read_text()).body)
        if has_arrays(node) and (lacks := missing(node))
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_arrays_have_shapes_and_dtypes(room: str) -> None:
    found = [line for path in ROOMS[room] for line in offenders(path)]
    assert not found, f"{len(found)} functions of {room}:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("docstring", "lacks"),
    [
        ("None", ["docstring"]),
        ("'Adds one.'", ["shape", "dtype"]),
        ("'Adds one to float32 numbers in [0, 1].'", ["shape"]),
        ("'Adds one to all of x [b, t].'", ["dtype"]),
        ("'Adds one to float32[b, t * d].'", []),
        ("'Adds one: [] in the dtype of x.'", []),
        ("'Adds one to bool[..., (n,) k // 2] and typed PRNG keys.'", []),
    ],
)
def test_what_lacks_is_named(docstring: str, lacks: list[str]) -> None:
    (node,) = ast.parse(f"def add(x: Array) -> Array:\n    {docstring}\n").body
    assert isinstance(node, ast.FunctionDef) and has_arrays(node)
    assert missing(node) == lacks


def test_what_is_looked_at() -> None:
    source = """
def plain(x: int) -> int: ...
def _hidden(x: Array) -> Array: ...
def listed(x: "list[np.ndarray]") -> None: ...
def lazy(x: LazyArray) -> None: ...
class Net:
    def __call__(self, x: jax.Array | None) -> None: ...
    def __init__(self, x: Array) -> None: ...
    async def result(self) -> dict[str, Array]: ...
class _Part:
    def run(self, *x: Array) -> None: ...
"""
    found = [name for name, node in public_functions(ast.parse(source).body) if has_arrays(node)]
    assert found == ["listed", "Net.__call__", "Net.result"]
