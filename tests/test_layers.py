"""The layers of the package, held against its real imports, and what importing it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import brainstore

PACKAGE = Path(brainstore.__file__).parent

LEVELS: dict[int, str] = {
    0: "errors address settings provenance notebook threads storage.base",
    1: "quality records meta dtypes tensors packs pytree storage",
    2: "cache blobs marker index",
    3: "journal versions pointers registry intents commit zoo",
    4: "groups drafts factory deletion table history diff classic fsck sync "
    "garbage architecture programs golden verification behaviour league policies",
    5: "manager",
    6: "inference networks migrate dial demo",
    7: "cli",
}
"""What a module imports stands on its own level or below. `storage.base` is the contract."""


def modules() -> dict[str, Path]:
    """Return every module by its name without `brainstore.`; a package by its own."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = path
    return found


def room_of(name: str) -> str:
    """Return the row of the table that the module belongs to: its own, or its package's."""
    rooms = {room for rooms in LEVELS.values() for room in rooms.split()}
    stem = name.partition(".")[0]
    return name if name in rooms else stem


def level_of(name: str) -> int:
    room = room_of(name)
    for level, rooms in LEVELS.items():
        if room in rooms.split():
            return level
    pytest.fail(f"brainstore/{name.replace('.', '/')}.py stands on no level; add it to the table")


def imports(name: str, path: Path, *, at_import_time: bool = False) -> set[str]:
    """Return the modules of brainstore that this one imports, also inside functions.

    Imports for type checkers only do not count.
    """
    known, found = set(modules()), set()
    for node in _walk(ast.parse(path.read_text(encoding="utf-8")), at_import_time):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            source = node.module or ""
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                is_module = whole.removeprefix("brainstore.") in known
                found.add(whole if is_module else source)
    ours = {each for each in found if each.partition(".")[0] == "brainstore"}
    return {each.removeprefix("brainstore").removeprefix(".") for each in ours}


def _walk(tree: ast.AST, at_import_time: bool) -> list[ast.AST]:
    found: list[ast.AST] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            found += [each for part in node.orelse for each in [part, *_walk(part, at_import_time)]]
            continue
        if at_import_time and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        found += [node, *_walk(node, at_import_time)]
    return found


FACADES = {"", "__main__"}


@pytest.mark.parametrize("name", sorted(set(modules()) - FACADES))
def test_imports_point_down(name: str) -> None:
    level = level_of(name)
    higher = {
        other
        for other in imports(name, modules()[name])
        if other not in FACADES and level_of(other) > level
    }
    assert not higher, f"{name} stands on level {level}, and imports {sorted(higher)}"


def test_no_imports_go_round_in_a_circle() -> None:
    known = modules()
    graph = {name: imports(name, path) & set(known) - {name} for name, path in known.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in sorted(known):
        visit(name, ())


def test_the_table_names_no_module_that_is_gone() -> None:
    rooms = [room for rooms in LEVELS.values() for room in rooms.split()]
    assert len(rooms) == len(set(rooms))
    missing = set(rooms) - set(modules())
    assert not missing, f"no such modules: {sorted(missing)}"


def imported_by(statement: str) -> set[str]:
    """Return the packages that a fresh process has loaded after the statement."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_brainstore_is_cheap() -> None:
    loaded = imported_by("import brainstore")
    assert not loaded & {"jax", "jaxlib", "numpy", "fsspec", "s3fs", "botocore", "flax", "msgspec"}


def test_the_manager_is_imported_without_jax_and_web_libraries() -> None:
    loaded = imported_by("from brainstore import BrainManager, BrainMeta")
    assert not loaded & {"jax", "jaxlib", "flax", "fsspec", "s3fs", "botocore", "aiohttp", "torch"}


def test_listing_a_local_zoo_loads_neither_jax_nor_web_libraries(tmp_path: Path) -> None:
    statement = f"import brainstore; brainstore.BrainManager({str(tmp_path)!r}).list_models()"
    loaded = imported_by(statement)
    assert not loaded & {"jax", "jaxlib", "numpy", "flax", "fsspec", "s3fs", "botocore", "aiohttp"}


def test_the_core_never_imports_what_executes_pickles_or_downloads() -> None:
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            taboo = {"pickle", "cloudpickle", "dill", "shelve", "marshal"} & set(names)
            assert not taboo, f"{name} imports {taboo}"
