"""Print the built site as one book, ``_build/kernel-regimes.pdf``.

Headless Chromium prints it twice: the first print tells on which page each heading lies, for the table of contents. The
browser gets files of the site and Matplotlib's fonts; any other request is an error.
"""

from functools import partial
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

import matplotlib
import yaml
from bs4 import BeautifulSoup
from chapters import ROOT
from inspect_site import COUNTS, SITE, opened, patient
from join_pages import assemble
from pikepdf import Name, ObjectStreamMode, OutlineItem, Pdf
from pypdf import PdfReader

PDF = ROOT / "_build" / "kernel-regimes.pdf"
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
ADDRESS = "http://book.invalid/"
TEXT = {"width": 627, "height": 900}  # 166 mm, the width of the text on the page
PRINT = {"prefer_css_page_size": True, "print_background": True, "tagged": True}
OLDEST = 131  # the first to print page numbers by style
LEVELS = ["part", "h1", "h2"]
# What is wider than the text is made smaller, with one percent for what a table's columns gain by rounding; what leads
# nowhere is returned.
FIT = """() => document.querySelectorAll("div.math, table").forEach(element => {
    const room = element.parentElement.clientWidth
    if (element.scrollWidth > room) element.style.zoom = 0.99 * room / element.scrollWidth
})"""
DANGLING = """() => [...document.querySelectorAll("a[href^='#']")].map(link => link.getAttribute("href"))
    .filter(target => !document.getElementById(target.slice(1)))"""
NUMBER = "numbers => document.querySelectorAll('.contents .page').forEach((page, i) => page.textContent = numbers[i])"


def answer(route, book, trouble):
    """Answer a request of the browser from the book, the site and the fonts."""
    url, path = route.request.url, unquote(urlsplit(route.request.url).path)[1:]
    file = FONTS / path.removeprefix("fonts/") if path.startswith("fonts/") else SITE / path
    if url == ADDRESS:
        route.fulfill(body=book, content_type="text/html; charset=utf-8")
    elif url.startswith(ADDRESS) and file.is_file():
        route.fulfill(path=file)
    else:
        trouble.append(f"a request for {url}")
        route.abort()


def places(pdf, contents):
    """For each entry of the table of contents the number of its page, and its height there."""
    reader = PdfReader(BytesIO(pdf))
    found = [reader.named_destinations[f"/{target}"] for _, target, _ in contents]
    return [(reader.get_destination_page_number(place) + 1, place.top) for place in found]


def print_book(tab, book, contents):
    """The book in PDF, with page numbers in its table of contents, and the places of the entries."""
    trouble = []
    tab.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    tab.route("**/*", partial(answer, book=book, trouble=trouble))
    tab.emulate_media(media="print", color_scheme="light")
    tab.goto(ADDRESS, wait_until="networkidle")
    tab.wait_for_function("MathJax.startup.promise.then(() => document.fonts.ready).then(() => true)")
    tab.evaluate(FIT)
    trouble += [f"{count} {what}" for what, count in tab.evaluate(COUNTS).items() if count > 0]
    trouble += [f"a link to nowhere: {link}" for link in tab.evaluate(DANGLING)]
    found = places(tab.pdf(**PRINT), contents)
    tab.evaluate(NUMBER, [number for number, _ in found])
    pdf = tab.pdf(**PRINT)
    if places(pdf, contents) != found:
        trouble.append("the page numbers in the table of contents move the pages")
    if trouble:
        raise SystemExit("the book cannot be printed: " + "; ".join(trouble))
    return pdf, found


def add_outline(pdf, contents, found):
    """Add the table of contents as the outline: parts, in them chapters, in them sections."""
    above = []
    with pdf.open_outline() as outline:
        for (level, _, title), (number, top) in zip(contents, found, strict=True):
            above = [(other, item) for other, item in above if LEVELS.index(other) < LEVELS.index(level)]
            text = BeautifulSoup(title, "html.parser").get_text()
            item = OutlineItem(text, number - 1, "XYZ", top=float(top))
            (above[-1][1].children if above else outline.root).append(item)
            above.append((level, item))


def main():
    config, toc = (yaml.safe_load((ROOT / name).read_text(encoding="utf-8")) for name in ("_config.yml", "_toc.yml"))
    book, contents = assemble(config, toc)
    with opened() as browser:
        if int(browser.version.split(".")[0]) < OLDEST:
            raise SystemExit(f"expected Chromium {OLDEST} or newer, got {browser.version}")
        pdf, found = print_book(patient(browser.new_page(viewport=TEXT)), book, contents)
    with Pdf.open(BytesIO(pdf)) as printed:
        printed.docinfo.update({Name.Title: config["title"], Name.Author: config["author"]})
        printed.Root.PageMode = Name.UseOutlines
        add_outline(printed, contents, found)
        # Chromium writes each of a million small objects by itself; together and packed they take a third.
        printed.save(PDF, object_stream_mode=ObjectStreamMode.generate, recompress_flate=True)
        print(f"{PDF.relative_to(ROOT)}: {len(printed.pages)} pages")


if __name__ == "__main__":
    main()
