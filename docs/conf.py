"""Sphinx: how the pages of this folder become a site. ``scripts/docs`` builds it; nothing is fetched."""

import mixersweep

project = "mixersweep"
author = "The mixersweep authors"
copyright = "the mixersweep authors"
version = release = mixersweep.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"

html_theme = "furo"
html_title = f"mixersweep {version}"
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["pictures.css"]
