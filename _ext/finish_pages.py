"""Finish the pages: leave out what none needs, give images their size, mend roles and downloads."""

import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import imagesize

# The theme draws its icons twice: by a script of 1.5 MB, and by a font of a tenth of that. The font will do.
ICON_SCRIPT = re.compile(r"\s*<script\b[^>]*/fontawesome\.js[^>]*></script>")
UNUSED = ("*.map", "*.ttf", "*.LICENSE.txt", "fontawesome.js", "locales", "root")
IMAGE = re.compile(r'<img\b(?![^>]*\s(?:width|height)=")[^>]*?\ssrc="(?!https?:|data:)([^"]+)"')
# The theme opens what is to be downloaded, raw, in a new tab.
OPENED, DOWNLOADED = re.compile(r'target="_blank"(\s+class="btn btn-sm btn-download-)'), r"download\1"
# The entries of a bibliography are in a list, and what is in a list are its items.
# What is in a folded cell is said by its label, to those who hear it too; and the fonts of print have no emoji.
MENDED = {'role="doc-biblioentry"': 'role="listitem"', ' aria-label="Toggle hidden content"': "", "✅": "✓"}
CSS_INCH = 96  # pixels


def _finish(app, exception):
    if exception or app.builder.format != "html":
        return
    site = Path(app.outdir)
    for path in [path for pattern in UNUSED for path in (site / "_static").rglob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for page in site.rglob("*.html"):
        html = OPENED.sub(DOWNLOADED, ICON_SCRIPT.sub("", page.read_text(encoding="utf-8")))
        for found, mended in MENDED.items():
            html = html.replace(found, mended)
        page.write_text(
            IMAGE.sub(lambda m, page=page: m[0] + _size(page.parent / unquote(m[1])), html), encoding="utf-8"
        )


def _size(path):
    """The attributes of an image that give its size on the page: that on paper, where the file says so."""
    width, height = imagesize.get(path)
    dots = imagesize.getDPI(path)[0] if path.suffix == ".png" else -1
    scale = CSS_INCH / dots if dots > 0 else 1
    return f' width="{width * scale:.0f}" height="{height * scale:.0f}"'


def setup(app):
    app.connect("build-finished", _finish, priority=800)
    return {"parallel_read_safe": True}
