"""Sphinx's settings. `make docs` builds the manual into build/docs; warnings are errors."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generate

project = "road-interp"
author = "the authors of road-interp"
release = metadata.version("road-interp")
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
]
exclude_patterns = ["figures/**"]
default_role = "code"

myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks hold the outputs of `make notebooks`
copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .go"

autodoc_typehints = "signature"
autodoc_default_options = {"exclude-members": "__init__"}
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

html_theme = "pydata_sphinx_theme"
html_title = f"road-interp {release}"
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["manual.css"]
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
}


def keep_bars(app, what, name, obj, options, lines):
    """Bars in docstrings are absolute values, not substitutions."""
    lines[:] = [line.replace("|", "\\|") for line in lines]


def setup(app):
    """Write the generated pages before Sphinx reads its sources."""
    app.config.mathjax_path = "mathjax/tex-svg.js"  # needs no fonts
    app.connect("config-inited", lambda app, config: generate.main(Path(app.srcdir)))
    app.connect("autodoc-process-docstring", keep_bars)
