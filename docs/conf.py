"""Sphinx configuration."""

import builtins
import functools
import importlib
import inspect
import operator
import re
import sys
from pathlib import Path
from types import UnionType
from typing import Annotated, NewType, get_args, get_origin

from docutils import nodes
from sphinx import addnodes
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

from ociruntime import overrides
from ociruntime.spec import base as spec_base

project = "ociruntime"
author = "The ociruntime developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "ociruntime"
html_static_path = ["static"]
html_css_files = ["narrow.css"]
copybutton_prompt_text = r">>> |\.\.\. ?|\$ |> "  # neither they nor what is printed are copied
copybutton_prompt_is_regexp = True
pygments_dark_style = "github-dark"  # that of the theme underlines the names of modules
myst_heading_anchors = 3
default_role = "py:obj"

MODULES = [importlib.import_module(f"ociruntime{name}") for name in ("", ".spec", ".errors", ".image", ".image.sif", ".aio")]
CLASSES = {
    value: f"{module.__name__}.{name}"
    for module in MODULES
    for name in module.__all__
    if inspect.isclass(value := getattr(module, name))
}
"""Each public class, and its name. Members of a base that is not public are members of the classes that have it."""
BASES = {base for cls in CLASSES for base in cls.__mro__[1:]}
OWN_ENTRY = {base for base in BASES if base in CLASSES or not base.__module__.startswith("ociruntime") or base.__name__ == "Record"}

autodoc_default_options = {
    "members": True,
    "undoc-members": True,
    "inherited-members": ",".join(sorted(base.__name__ for base in OWN_ENTRY)),  # are left out
    "member-order": "bysource",
}
autodoc_typehints = "both"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88

CONSTRAINED = {kind: NewType(name, object) for name, kind in vars(spec_base).items() if get_origin(kind) is Annotated}


def name_types(kind):
    """Return a type of the model with names such as Uint16 in place of their constraints, which Sphinx would spell out."""
    if kind in CONSTRAINED:
        return CONSTRAINED[kind]
    origin, arguments = get_origin(kind), tuple(name_types(argument) for argument in get_args(kind))
    return kind if not arguments else functools.reduce(operator.or_, arguments) if origin is UnionType else origin[arguments]


for model in CLASSES:
    for member, kind in vars(model).get("__annotations__", {}).items():
        if "Constraint(" in repr(kind):
            model.__annotations__[member] = name_types(kind)

SPEC = "https://github.com/opencontainers/runtime-spec/blob/v1.3.0"
SECTION = re.compile(r"\b(?:config|runtime|features)(?:-\w+)?\.md(?:#[\w-]+)?")
NAPOLEON = Config(napoleon_use_ivar=True)


def convert(app, what, name, obj, options, lines):
    """Write a docstring as reStructuredText, with links to the sections of the runtime spec that it names, as config.md#mounts.

    Those of attributes have no sections, and napoleon would take what is before a colon for their type, as it would for properties.
    """
    if what != "attribute":
        kind = "method" if what == "property" else what
        lines[:] = GoogleDocstring(lines, NAPOLEON, app, kind, name, obj, options).lines()
    if what in ("class", "exception"):
        bases = [CLASSES[base] for base in obj.__bases__ if base in CLASSES]
        lines += ["", f"Has the members of {' and '.join(f'`{base}`' for base in bases)} too.", ""] if bases else []
    if what == "data":
        lines[:] = value_docs(name.rpartition(".")[2], obj)
    elif lines[:1] and lines[0].startswith("Alias for field number"):  # of a NamedTuple without a docstring for the field
        lines.clear()
    lines[:] = [SECTION.sub(lambda found: f"`{found[0]} <{SPEC}/{found[0]}>`__", line) for line in lines]


def value_docs(name, value):
    """Return the docstring of a value, which is in the module that defines it, not in the one that exports it or in its type."""
    for module, names in [(module, vars(module)) for key, module in sys.modules.items() if key.startswith("ociruntime")]:
        if names.get(name) is value:
            docs = ModuleAnalyzer.for_module(module.__name__).find_attr_docs()
            if ("", name) in docs:
                return docs["", name]
    return []


def skip(app, what, name, obj, skipped, options):
    """Leave out other values of a module without a docstring: they have entries of their own, or none."""
    return skipped or (what == "module" and not (inspect.isclass(obj) or inspect.isroutine(obj)))


PLOTS = Path("../benchmarks/history/history.svg")


def show_plots(app, docname, source):
    """Show the plots of the benchmarks, if figures have been added to them, in place of a comment."""
    if docname == "performance" and (Path(app.srcdir) / PLOTS).exists():
        source[0] = source[0].replace("<!-- plots -->", f"![Each figure over the measured commits]({PLOTS})")


def correct_links(app, doctree):
    """Correct what Sphinx would link to another thing of the same name.

    These are built-in types, of which attributes have the names, such as ``LostOutput.bytes``, and types of arguments.
    """
    for reference in list(doctree.findall(addnodes.pending_xref)):
        target = reference.get("reftarget")
        if target in vars(builtins):
            reference.replace_self(reference.children)
        elif target in overrides.__all__ and reference.get("py:module") != "ociruntime.spec":
            reference["reftarget"] = f"{overrides.__name__}.{target}"


def check(app, env):
    """Warn, which fails the build, of public members of public classes that have no entry."""
    entries = env.get_domain("py").objects
    for cls, name in CLASSES.items():
        names = [f"ociruntime.{cls.__name__}", name]
        for base in cls.__mro__:
            if base is cls or base not in OWN_ENTRY:
                for member in {*vars(base), *vars(base).get("__annotations__", ())}:
                    if not member.startswith("_") and not any(f"{each}.{member}" in entries for each in names):
                        logging.getLogger(__name__).warning("%s.%s is not in the reference", name, member)


def leave_out_unknown(app, doctree):
    """Remove the argument of a signature that only says which keyword was meant."""
    for parameter in list(doctree.findall(addnodes.desc_parameter)):
        if parameter.astext().startswith("**unknown:"):
            parameter.parent.remove(parameter)


def trim(app, doctree):
    """Remove empty lines at the end of code blocks, which doctest needs before a fence."""
    for block in doctree.findall(nodes.literal_block):
        if len(block) == 1 and isinstance(block[0], nodes.Text):
            block.rawsource = block.rawsource.rstrip("\n")
            block[0] = nodes.Text(block[0].rstrip("\n"))


def setup(app):
    app.connect("source-read", show_plots)
    app.connect("doctree-read", trim)
    app.connect("doctree-read", correct_links)
    app.connect("doctree-read", leave_out_unknown)
    app.connect("env-check-consistency", check)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", convert)
