"""Which module may import which: read from the source, imports inside functions included, those for type checkers not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ociruntime"
FILES = sorted(PACKAGE.rglob("*.py"))


def _for_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if _for_checkers(node):
        assert isinstance(node, ast.If)
        children: list[ast.AST] = list(node.orelse)
    else:
        children = list(ast.iter_child_nodes(node))
    for child in children:
        yield from _walk(child)


def imports(source: str, module: list[str], is_package: bool) -> set[str]:
    """Absolute names of what a module imports; of ``from a import b`` both ``a`` and ``a.b``."""
    found = set()
    for node in _walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module[: len(module) - node.level + is_package] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found |= {name} | {f"{name}.{alias.name}" for alias in node.names}
    return found


def of(path: Path) -> tuple[str, set[str]]:
    """The unit of a file (its name or folder below the package) and what it imports."""
    parts = ["ociruntime", *path.relative_to(PACKAGE).with_suffix("").parts]
    is_package = parts[-1] == "__init__"
    if is_package:
        parts.pop()
    unit = parts[1] if len(parts) > 1 else ""
    return unit, imports(path.read_text(), parts, is_package)


def units(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("ociruntime.")}


FORBIDDEN = {
    "spec": {"host", "plan", "engine", "state", "_native"},
    "image": {"host", "plan", "engine", "state", "_native"},
    "plan": {"engine", "state", "_native"},
    "engine": {"rootfs", "state", "lifecycle", "supervisor"},
    "state": {"spec", "plan", "engine", "_native"},
}
FOREIGN = {"plan": {"subprocess", "os", "socket"}, "state": {"cattrs", "attrs"}}


def test_the_reader_of_imports() -> None:
    text = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import hidden\nelse:\n    import seen\n"
        "def f():\n    from ..host import Host\n    from . import ops\n"
    )
    found = imports(text, ["ociruntime", "plan", "model"], False)
    assert {"seen", "ociruntime.host.Host", "ociruntime.plan.ops"} <= found
    assert "hidden" not in found
    assert "ociruntime.plan.ops" in imports("from .ops import OPS", ["ociruntime", "plan"], True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layers(path: Path) -> None:
    unit, names = of(path)
    assert not units(names) & FORBIDDEN.get(unit, set())
    assert not {name.split(".")[0] for name in names} & FOREIGN.get(unit, set())
    if unit == "errors":
        assert not units(names)
    if unit not in ("engine", "files", "rootfs", "seccomp", "_native"):
        assert "_native" not in units(names)
    if unit == "cli":
        hidden = {name for name in names if name.startswith("ociruntime.") and any(p.startswith("_") for p in name.split("."))}
        assert not hidden - {"ociruntime.__version__"}
        assert not units(names) & {"engine", "_native", "rootfs"}
