"""Say on the page what is inside of a folded cell, and offer one switch that unfolds the code of all of them.

The tags of a cell fold it (MyST-NB); what it is for, a second tag, gives the label.
"""

from docutils import nodes

LABELS = {"check": "Show the check", "checks": "Checks", "drawing": "Show how this is drawn"}
DEFAULT = "Show code"


def label(tags):
    """What a folded cell with these tags is called."""
    return next((LABELS[tag] for tag in tags if tag in LABELS), DEFAULT)


def _label_cells(app, doctree):
    for cell in doctree.findall(nodes.container):
        if "hide_mode" in cell:
            cell["prompt_show"] = label(name.removeprefix("tag_") for name in cell["classes"])
            cell["prompt_hide"] = cell["prompt_show"].replace("Show", "Hide")


def _add_switch(app, pagename, templatename, context, doctree):
    if '<details class="admonition hide' in context.get("body", ""):
        switch = {
            "type": "javascript",
            "javascript": "toggleAllCode()",
            "text": "Code",
            "icon": "fas fa-code",
            "tooltip": "Show all code",
            "label": "all-code-button",
        }
        context["header_buttons"].insert(0, switch)


def setup(app):
    app.connect("doctree-read", _label_cells)
    app.connect("html-page-context", _add_switch, priority=600)  # the theme's own buttons come at 501
    app.add_js_file("code.js", loading_method="defer")
    return {"parallel_read_safe": True}
