"""How Sphinx builds this site: ``make docs`` calls it, with warnings as errors.

Nothing is fetched while it builds, and a reader needs no network either: equations become MathML,
which browsers draw themselves, and pictures are made by the examples.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
# The extensions of this site are modules beside this file; the examples import each other.
sys.path[:0] = [str(HERE), str(HERE.parent / "examples")]

import rnncore
from gallery import gallery_settings

project = "rnncore"
author = "the authors of rnncore"
copyright = author
version = release = rnncore.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
    "gallery",
    "mathml",
    "members",
]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
exclude_patterns = ["_build", "examples/**/*.py", "examples/**/*.ipynb"]
templates_path = ["_templates"]
nitpicky = True
default_role = "literal"
smartquotes = False

# ---- Interface -----------------------------------------------------------------------------------

autosummary_generate = True
autodoc_member_order = "bysource"
# Docstrings give shapes and defaults, which annotations cannot.
autodoc_typehints = "none"
numpydoc_show_class_members = False  # the template of classes lists them with all that they say

# ---- Examples ------------------------------------------------------------------------------------

sphinx_gallery_conf = gallery_settings(HERE)

# ---- Look ----------------------------------------------------------------------------------------

html_theme = "furo"
html_title = f"rnncore {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False
