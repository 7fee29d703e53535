"""Sphinx configuration."""

project = "ociruntime"
author = "The ociruntime developers"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "ociruntime"
myst_heading_anchors = 3
