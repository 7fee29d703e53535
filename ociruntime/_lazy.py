"""What is imported when it is first used: the names of a package (PEP 562), and the representations of values in notebooks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module

Names = tuple[Callable[[str], object], Callable[[], list[str]], list[str]]


def lazy_names(package: str, modules: Mapping[str, str], submodules: str = "") -> Names:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` for a package whose names come from its modules.

    Args:
        package: The package's ``__name__``.
        modules: The name of each module, relative to the package, and the public names that it defines, separated by spaces.
        submodules: Public modules of the package, separated by spaces; they too are imported when they are first used.
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}
    public = sorted({*homes, *submodules.split()})

    def get_name(name: str) -> object:
        if name in homes:
            value: object = getattr(import_module(f"{package}.{homes[name]}"), name)
        elif name in public:
            value = import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        setattr(sys.modules[package], name, value)
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *public})

    return get_name, list_names, public


class HtmlRepr:
    """A value that notebooks show by `integrations.html`, which is imported only then."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        from .integrations.html import render

        return render(self)
