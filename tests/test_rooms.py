"""The rooms of the library: who may import whom, how large a room, a file and a function may be."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Each room imports from the rooms before it alone; those of one line do not know each other.
ORDER = (
    ("types", "dtype_policy", "config", "presets", "logs"),
    ("ops",),
    ("distributed",),
    ("modules",),
    ("model",),
    ("pretrained", "compiled", "data"),
    ("background",),
    ("engine",),
    ("training", "evaluation", "serve"),
)
PEERS = {("presets", "config")}  # the one import between rooms of a line
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
LONGEST_FILE, LONGEST_FUNCTION, ROOT_MODULES = 500, 80, 6


def modules(package: str) -> dict[str, ast.Module]:
    """Dotted names of a package's modules, parsed."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text())
    return found


LIBRARY = modules("interaction")


def imports(tree: ast.Module) -> set[str]:
    """Modules of this repository that a module imports, wherever the statement stands."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in LIBRARY else node.module for name in inside}
    return {name for name in found if name.split(".")[0] in ("interaction", "experiments", "tests")}


def room(name: str) -> str:
    """The room of a module: the part behind the package's name."""
    return name.split(".")[1] if "." in name else ""


def test_no_import_leads_upwards() -> None:
    wrong = []
    for name, tree in LIBRARY.items():
        for other in imports(tree):
            here, there = room(name), room(other)
            if not here or here == there or (here, there) in PEERS:
                continue
            if not other.startswith("interaction.") or RANK[there] >= RANK[here]:
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_no_circles() -> None:
    edges = {name: imports(tree) & set(LIBRARY) - {name} for name, tree in LIBRARY.items()}
    while free := {name for name, others in edges.items() if not others}:
        edges = {name: others - free for name, others in edges.items() if name not in free}
    assert not edges


def test_kernels_know_nothing_of_the_library() -> None:
    assert not {name for tree in modules("pallas_kernels").values() for name in imports(tree)}


def test_the_root_is_small() -> None:
    found = sorted(path.name for path in (ROOT / "interaction").glob("*.py"))
    assert len(found) <= ROOT_MODULES, found


@pytest.mark.parametrize("package", ["interaction", "pallas_kernels", "experiments", "tests"])
def test_files_and_functions_are_short(package: str) -> None:
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        text = path.read_text()
        lines = text.count("\n")
        if lines > LONGEST_FILE:
            wrong.append(f"{path.name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                # A kernel's body is one function by nature.
                if length > LONGEST_FUNCTION and not path.name.startswith("kernel_"):
                    wrong.append(f"{path.name}: {node.name} has {length} lines")
    assert not wrong


def test_no_two_neighbours_share_a_file_name() -> None:
    names = [
        path.name for path in (ROOT / "interaction").rglob("*.py") if path.name != "__init__.py"
    ]
    assert not {name for name in names if names.count(name) > 1}
