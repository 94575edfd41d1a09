"""Offer the whole site as one file, to read without a network."""

import zipfile
from pathlib import Path

NAME = "kernel-regimes.zip"


def _add_button(app, pagename, templatename, context, doctree):
    for group in context.get("header_buttons", []):
        if group.get("label") == "download-buttons":
            button = {
                "type": "link",
                "url": context["pathto"](NAME, 1),
                "text": ".zip",
                "icon": "fas fa-book",
                "tooltip": "Download the whole book",
                "label": "download-site-button",
            }
            group["buttons"].append(button)


def _pack(app, exception):
    if exception or app.builder.name != "html":
        return
    site = Path(app.outdir)
    files = sorted(path for path in site.rglob("*") if path.is_file() and path.name != NAME)
    with zipfile.ZipFile(site / NAME, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            name = Path(NAME).stem + "/" + path.relative_to(site).as_posix()
            # All of one date, 1980, so that the same site gives the same archive.
            archive.writestr(zipfile.ZipInfo(name), path.read_bytes(), zipfile.ZIP_DEFLATED)


def setup(app):
    app.connect("html-page-context", _add_button, priority=600)
    app.connect("build-finished", _pack, priority=900)  # after all that writes files
    return {"parallel_read_safe": True}
