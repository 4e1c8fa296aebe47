"""The site: pages in Markdown, a reference made from the docstrings, nothing from outside."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "gradlogp"
author = "The gradlogp developers"
root_doc = "index"
exclude_patterns = ["_ext", "img/*.py"]

NAVIGATION = {
    "Start": ["quickstart", "choosing", "lecture", "explore", "gallery", "faq", "conventions"],
    "Coming from": ["coming-from", "coming-from-diffusion"],
    "Chains": ["which-sampler", "sampling", "conformance"],
    "Learning": ["learning", "images", "conditions", "tables", "comparing", "checking"],
    "Diffusion": [
        "diffusion",
        "flow-matching",
        "autoguidance",
        "inverse",
        "pretrained",
        "diffusers-density",
        "geometry",
    ],
    "More": ["theory", "add", "reliability", "scale", "benchmarks", "architecture"],
    "Reference": ["reference/index"],
}
"""The pages by caption, in the order of the navigation."""

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "typeset",
    "pages",
    "explorers",
    "gallery",
    "choosing",
]
default_role = "py:obj"
add_module_names = False
toc_object_entries_show_parents = "hide"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

autodoc_class_signature = "mixed"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = ["Wikipedia"]
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
viewcode_line_numbers = True

html_theme = "furo"
html_title = "gradlogp"
html_permalinks_icon = "#"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#00796b", "color-brand-content": "#00796b"},
    "dark_css_variables": {"color-brand-primary": "#4db6ac", "color-brand-content": "#4db6ac"},
}
pygments_style = "default"
pygments_dark_style = "github-dark"
