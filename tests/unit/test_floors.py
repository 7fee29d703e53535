"""The floors of the package: which module may import which, read from the source, imports inside functions included.

Imports for type checkers only (below ``if TYPE_CHECKING:``) do not count. docs/architecture.md shows the same table.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ociruntime"
FILES = {
    ".".join(["ociruntime", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

FLOORS = (
    ("_native", "arguments", "errors"),
    ("integrations.html",),
    ("_lazy",),
    ("interrupts",),
    ("files",),
    ("spec", "streams"),
    ("host", "seccomp", "stats", "terminal"),
    ("image",),
    ("plan",),
    ("engine",),
    ("supervisor.protocol",),
    ("store",),
    ("cdi", "rootfs"),
    ("overrides",),
    ("diagnosis", "presets"),
    ("options",),
    ("lifecycle",),
    ("supervisor",),
    ("bundle", "process", "state"),
    ("container", "ephemeral"),
    ("sandbox",),
    ("aio", "cli"),
    ("integrations",),
)
"""The units of the package from the lowest floor to the highest. A unit imports itself and lower floors."""


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    checker_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    for child in node.orelse if isinstance(node, ast.If) and checker_only else ast.iter_child_nodes(node):
        yield from _walk(child)


def imported(source: str, module: str, is_package: bool) -> set[str]:
    """Return the absolute names that a module imports; for ``from a import b`` both ``a`` and ``a.b``."""
    parts, found = module.split("."), set()
    for node in _walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found |= {name} | {f"{name}.{alias.name}" for alias in node.names}
    return found


IMPORTS = {name: imported(path.read_text(), name, path.name == "__init__.py") for name, path in FILES.items()}


def unit_of(module: str) -> str:
    """Return the unit of a module: the module or package directly below ``ociruntime``, unless the module has a floor of its own."""
    name = module.removeprefix("ociruntime").removeprefix(".")
    return name if any(name in floor for floor in FLOORS) else name.partition(".")[0]


def modules_of(module: str) -> set[str]:
    """Return the modules of the package that a module imports. A name that a package defines itself counts as the package."""
    found = {name for name in IMPORTS[module] if name in FILES and name != module}
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def test_the_reader_of_imports() -> None:
    text = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import hidden\nelse:\n    import seen\n"
        "def f():\n    from ..host import Host\n    from . import ops\n"
    )
    found = imported(text, "ociruntime.plan.model", False)
    assert {"seen", "ociruntime.host.Host", "ociruntime.plan.ops"} <= found
    assert "hidden" not in found
    assert "ociruntime.plan.ops" in imported("from .ops import OPS", "ociruntime.plan", True)


def test_every_unit_has_a_floor() -> None:
    table = [unit for floor in FLOORS for unit in floor]
    assert len(set(table)) == len(table)
    assert {unit_of(name) for name in FILES} - {"", "__main__"} == set(table)


def test_the_documentation_shows_the_table() -> None:
    text = (PACKAGE.parent / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
    assert [tuple(re.findall(r"`([^`]+)`", row)) for row in rows] == list(FLOORS)


@pytest.mark.parametrize("module", [name for name in FILES if unit_of(name) not in ("", "__main__")])
def test_imports_go_down(module: str) -> None:
    heights = {unit: height for height, floor in enumerate(FLOORS) for unit in floor}
    unit = unit_of(module)
    others = {name for name in modules_of(module) if unit_of(name) not in ("", unit)}
    wrong = {name for name in others if heights[unit_of(name)] >= heights[unit]}
    assert not wrong, f"{module} imports {', '.join(sorted(wrong))}"


def test_no_module_imports_itself_through_others() -> None:
    edges = {name: modules_of(name) for name in FILES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in FILES:
        visit(name, ())


def test_what_compiles_does_not_act() -> None:
    foreign = {"subprocess", "os", "socket"}
    assert not [name for name in FILES if unit_of(name) == "plan" and {one.partition(".")[0] for one in IMPORTS[name]} & foreign]


def test_the_command_uses_the_public_api() -> None:
    private = {"engine", "_native", "rootfs", "lifecycle", "plan"}
    assert not [name for name in FILES if unit_of(name) == "cli" and {unit_of(one) for one in modules_of(name)} & private]
