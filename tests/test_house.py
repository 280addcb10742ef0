"""How the library is built: small files in rooms, imports that only go down, no use of private names."""

import ast
import importlib.util
import re
import statistics
from pathlib import Path

import pytest

PACKAGE = Path(importlib.util.find_spec("dpldm").origin).parent
MODULES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
NOTEBOOKS = {path: ast.parse(path.read_text()) for path in sorted(Path("notebooks").rglob("*.py"))}
NAMES = {".".join(("dpldm", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in MODULES}


# Lowest first: a room or file may import from itself and from those before it, wherever the import stands.
ROOMS = (
    "privacy", "data", "evaluation", "method", "rivals", "recipes", "methods", "records", "runs", "audit", "book",
    "coursework", "commands", "cli", "__main__",
)  # fmt: skip


def imports_of(tree: ast.Module) -> dict[str, str]:
    """Local name → dotted name of what is imported from the library, anywhere in a module."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dpldm":
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imported_at_once(tree: ast.Module) -> set[str]:
    """Modules of the library that are loaded with this one."""
    top = ast.Module([node for node in tree.body if isinstance(node, ast.ImportFrom)], [])
    return {name if name in NAMES else name.rpartition(".")[0] for name in imports_of(top).values()} & set(NAMES)


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Some cycle of a graph, as the names along it; empty where there is none."""
    done: set[str] = set()

    def follow(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        found = next((ring for after in sorted(graph[name]) if (ring := follow(after, [*path, name]))), [])
        done.add(name)
        return found

    return next((ring for name in sorted(graph) if (ring := follow(name, []))), [])


def foreign_private_names(tree: ast.Module) -> list[str]:
    """Private names of other modules that a module uses."""
    known = imports_of(tree)
    found = [name for name in known.values() if re.match(r"_(?!_)", name.rpartition(".")[2])]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and re.match(r"_(?!_)", node.attr):
            module = known.get(node.value.id)
            if module in NAMES:
                found.append(f"{module}.{node.attr}")
    return found


def room_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def upward(name: str, tree: ast.Module) -> list[str]:
    """What a module imports from rooms that lie above its own."""
    above = ROOMS[ROOMS.index(room_of(name)) + 1 :]
    return [found for found in imports_of(tree).values() if room_of(found) in above]


def test_every_room_has_its_place():
    assert {room_of(name) for name in NAMES if not name.endswith("__init__")} == set(ROOMS)


@pytest.mark.parametrize("name", [name for name in NAMES if room_of(name) in ROOMS])
def test_imports_go_down(name):
    assert upward(name, MODULES[NAMES[name]]) == []


def test_an_import_that_goes_up_is_noticed():
    inside = ast.parse("def f():\n    from dpldm.book import style\n    from dpldm.privacy import noise")
    assert upward("dpldm.method.pca", inside) == ["dpldm.book.style"]


def test_files_are_short():
    lines = {str(path): len(path.read_text().splitlines()) for path in MODULES if path.name != "__init__.py"}
    assert {path: count for path, count in lines.items() if count > 400} == {}
    assert statistics.median(lines.values()) <= 200


def test_modules_import_each_other_in_no_circle():
    assert cycle({name: imported_at_once(MODULES[path]) for name, path in NAMES.items()}) == []
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]


@pytest.mark.parametrize("path", [*MODULES, *NOTEBOOKS], ids=str)
def test_nobody_uses_what_is_private_to_another_module(path):
    assert foreign_private_names((MODULES | NOTEBOOKS)[path]) == []


def test_the_use_of_a_private_name_is_noticed():
    used = "from dpldm.privacy import noise\nfrom dpldm.records.names import _canonical\nnoise._handed_on(1)"
    found = foreign_private_names(ast.parse(used))
    assert found == ["dpldm.records.names._canonical", "dpldm.privacy.noise._handed_on"]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_and_every_public_name_has_a_docstring(path):
    tree = MODULES[path]
    named = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"]
    assert [node.name for node in named if not ast.get_docstring(node)] == []
    assert path.name == "__init__.py" or ast.get_docstring(tree)
