"""How the library is built: no import cycles, no use of another module's private names, a docstring for every name."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

PACKAGE = Path(importlib.util.find_spec("dpldm").origin).parent
MODULES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
NOTEBOOKS = {path: ast.parse(path.read_text()) for path in sorted(Path("notebooks").rglob("*.py"))}
NAMES = {".".join(("dpldm", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in MODULES}


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


def test_modules_import_each_other_in_no_circle():
    assert cycle({name: imported_at_once(MODULES[path]) for name, path in NAMES.items()}) == []
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]


@pytest.mark.parametrize("path", [*MODULES, *NOTEBOOKS], ids=str)
def test_nobody_uses_what_is_private_to_another_module(path):
    assert foreign_private_names((MODULES | NOTEBOOKS)[path]) == []


def test_the_use_of_a_private_name_is_noticed():
    used = "from dpldm import privacy\nfrom dpldm.results import _digest\nprivacy._merge([])"
    assert foreign_private_names(ast.parse(used)) == ["dpldm.results._digest", "dpldm.privacy._merge"]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_and_every_public_name_has_a_docstring(path):
    tree = MODULES[path]
    named = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"]
    assert [node.name for node in named if not ast.get_docstring(node)] == []
    assert path.name == "__init__.py" or ast.get_docstring(tree)
