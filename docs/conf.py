"""Sphinx configuration."""

import re
from pathlib import Path

from docutils import nodes
from sphinx.ext.napoleon import Config, GoogleDocstring

project = "ociruntime"
author = "The ociruntime developers"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "ociruntime"
pygments_dark_style = "github-dark"  # that of the theme underlines the names of modules
myst_heading_anchors = 3
default_role = "py:obj"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"

SPEC = "https://github.com/opencontainers/runtime-spec/blob/v1.3.0"
SECTION = re.compile(r"\b(?:config|runtime|features)(?:-\w+)?\.md(?:#[\w-]+)?")
NAPOLEON = Config(napoleon_use_ivar=True)


def convert(app, what, name, obj, options, lines):
    """Write a docstring as reStructuredText, with links to the sections of the runtime spec that it names, as config.md#mounts.

    Those of attributes have no sections, and napoleon would take what is before a colon for their type.
    """
    if what != "attribute":
        lines[:] = GoogleDocstring(lines, NAPOLEON, app, what, name, obj, options).lines()
    lines[:] = [SECTION.sub(lambda found: f"`{found[0]} <{SPEC}/{found[0]}>`__", line) for line in lines]


PLOTS = Path("../benchmarks/history/history.svg")


def show_plots(app, docname, source):
    """Show the plots of the benchmarks, if figures have been added to them, in place of a comment."""
    if docname == "performance" and (Path(app.srcdir) / PLOTS).exists():
        source[0] = source[0].replace("<!-- plots -->", f"![Each figure over the measured commits]({PLOTS})")


def trim(app, doctree):
    """Remove empty lines at the end of code blocks, which doctest needs before a fence."""
    for block in doctree.findall(nodes.literal_block):
        if len(block) == 1 and isinstance(block[0], nodes.Text):
            block.rawsource = block.rawsource.rstrip("\n")
            block[0] = nodes.Text(block[0].rstrip("\n"))


def setup(app):
    app.connect("source-read", show_plots)
    app.connect("doctree-read", trim)
    app.connect("autodoc-process-docstring", convert)
