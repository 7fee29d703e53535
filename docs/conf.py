"""Sphinx configuration."""

import re

from sphinx.ext.napoleon import Config, GoogleDocstring

project = "ociruntime"
author = "The ociruntime developers"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "ociruntime"
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


def setup(app):
    app.connect("autodoc-process-docstring", convert)
