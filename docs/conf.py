"""Sphinx configuration."""

project = "bayesmlp"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
html_theme = "furo"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
myst_heading_anchors = 3
exclude_patterns = ["_build"]
