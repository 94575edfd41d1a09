"""What must hold of the book that ``make pdf`` printed, beside the site that it was printed from."""

import json
import re
import unicodedata
from copy import copy

import pytest
import yaml
from chapters import ROOT
from filelock import FileLock
from inspect_site import SITE
from join_pages import anchor, on_paper, read, resolve, sidebar
from pypdf import PdfReader

PDF = ROOT / "_build" / "kernel-regimes.pdf"
CONFIG, TOC = (yaml.safe_load((ROOT / name).read_text(encoding="utf-8")) for name in ("_config.yml", "_toc.yml"))
BLOCKS = "p, pre, li, dt, dd, td, th, h1, h2, h3, h4, h5, h6"
FONT_FILES = {"/FontFile", "/FontFile2", "/FontFile3"}
A4 = (595, 842)  # points
MOST_PAGES, MOST_BYTES = 300, 12_000_000
FOLDED_CODE = "details.hide .cell_input pre"

FIRST = SITE / f"{TOC['root']}.html"

if not PDF.exists() or not FIRST.exists() or PDF.stat().st_mtime < FIRST.stat().st_mtime:
    pytest.skip(f"{PDF.relative_to(ROOT)} has not been made of the present site: run make pdf", allow_module_level=True)


def squeeze(text):
    """Text without white space, and with ligatures as their letters."""
    return re.sub(r"\s", "", unicodedata.normalize("NFKC", text))


def pieces(block):
    """The texts of a block of the site before, between and after its formulas."""
    block = copy(block)
    for math in block.select(".math"):
        math.replace_with("\0")
    return block.get_text().split("\0")


def flatten(outline):
    """Every item of an outline, in order."""
    for item in outline:
        yield from flatten(item) if isinstance(item, list) else [item]


@pytest.fixture(scope="module")
def reader():
    return PdfReader(PDF)


@pytest.fixture(scope="module")
def texts(reader, tmp_path_factory):
    """Text of every page, without the number in the footer, which Chromium puts first; one process reads it for all."""
    kept = tmp_path_factory.getbasetemp().parent / f"texts-{PDF.stat().st_mtime_ns}.json"
    with FileLock(f"{kept}.lock"):
        if not kept.exists():
            kept.write_text(json.dumps([page.extract_text() for page in reader.pages]))
    found = json.loads(kept.read_text())
    for number, text in enumerate(found[1:], 2):
        assert text.startswith(f"{number}\n"), f"page {number} has no number in its footer, or another"
    return [found[0], *(text.split("\n", 1)[1] for text in found[1:])]


@pytest.fixture(scope="module")
def links(reader):
    """Every link: the number of its page, and the name of its destination or the address that it leads to."""
    pages = [(n, a.get_object()) for n, page in enumerate(reader.pages, 1) for a in page.get("/Annots", [])]
    return [(number, link["/Dest"] if "/Dest" in link else link["/A"]["/URI"]) for number, link in pages]


@pytest.fixture(scope="module")
def places(reader):
    """Number of the page of every named destination."""
    return {name: reader.get_destination_page_number(place) + 1 for name, place in reader.named_destinations.items()}


@pytest.fixture(scope="module")
def site():
    """The articles of the site as they are printed, in the order of the sidebar."""
    names = sidebar(TOC["root"] + ".html")
    return {name: on_paper(read(name).select_one("article.bd-article")) for name in names}


@pytest.fixture(scope="module")
def starts(site, places):
    """Number of the page on which each page of the site begins."""
    return {name: places["/" + anchor(name, article.section["id"])] for name, article in site.items()}


def test_the_book_can_be_carried(reader):
    assert len(reader.pages) <= MOST_PAGES
    assert PDF.stat().st_size <= MOST_BYTES


def test_code_that_is_folded_on_the_site_is_not_printed(texts):
    book = squeeze("".join(texts))
    folded = [code.get_text() for name in sidebar(TOC["root"] + ".html") for code in read(name).select(FOLDED_CODE)]
    assert folded
    assert not [code for code in folded if len(code) > 200 and squeeze(code) in book]


def test_pages_are_a4_and_none_is_blank(reader, texts, site):
    assert len(site) + 2 <= len(reader.pages)
    for number, (page, text) in enumerate(zip(reader.pages, texts, strict=True), 1):
        assert len(squeeze(text)) > 20, f"page {number} is blank"
        assert (page.mediabox.width, page.mediabox.height) == pytest.approx(A4, abs=1)


def test_metadata(reader):
    assert (reader.metadata.title, reader.metadata.author) == (CONFIG["title"], CONFIG["author"])
    assert reader.root_object["/Lang"] == "en"
    assert reader.root_object["/MarkInfo"]["/Marked"].value is True


def test_outline_lists_parts_chapters_and_sections(reader, texts, site):
    titles = []
    for article, part in zip(site.values(), sidebar(TOC["root"] + ".html").values(), strict=True):
        titles += [part] * bool(part) + [heading.get_text() for heading in article.select("h1, h2")]
    items = list(flatten(reader.outline))
    assert [item.title for item in items[1:]] == titles[1:]  # the first page has another title in print
    for item in items:
        number = reader.get_destination_page_number(item)
        plain = squeeze(re.sub(r"\\\(.*?\\\).*", "", item.title)).casefold()
        assert plain in squeeze(texts[number]).casefold(), f"{item.title} is not on page {number + 1}"


def test_internal_links_lead_into_the_chapter_that_they_name(links, places, site, starts, reader):
    wanted = set()
    for name, article in site.items():
        addresses = (resolve(name, link["href"]) for link in article.select("a[href]"))
        wanted |= {"/" + anchor(*address) for address in addresses if address[0] in site}
    found = {target for _, target in links if target.startswith("/")}
    assert wanted <= found
    ends = [*list(starts.values())[1:], len(reader.pages) + 1]
    spans = {"/" + anchor(name): (start, end) for (name, start), end in zip(starts.items(), ends, strict=True)}
    for target in found:
        start, end = spans[target.split("--")[0]]
        assert start <= places[target] < end, f"{target} is on page {places[target]}, out of its chapter"


def test_external_links_are_those_of_the_site(links, site):
    addresses = (link["href"] for article in site.values() for link in article.select("a[href]"))
    assert {target for _, target in links if not target.startswith("/")} == {a for a in addresses if "://" in a}


def test_contents_give_the_page_of_each_heading(texts, links, places, starts, site):
    pages = range(2, next(iter(starts.values())))
    numbers = [int(n) for page in pages for n in re.findall(r"\D (\d+)$", texts[page - 1], re.MULTILINE)]
    targets = dict.fromkeys(target for number, target in links if number in pages)
    assert numbers == [places[target] for target in targets if "--" in target]  # a part has no number
    assert len(numbers) == sum(len(article.select("h1, h2")) for article in site.values())


def test_every_text_of_the_site_is_in_the_book(texts, site):
    book = squeeze("".join(texts))
    for name, article in site.items():
        blocks = [block for block in article.select(BLOCKS) if not block.select(BLOCKS)]
        assert blocks, name
        for block in blocks:
            for piece in pieces(block):
                assert squeeze(piece) in book, f"{name}: not in the book: {piece}"


def test_equations_are_rendered_and_numbered(texts, site):
    book = squeeze("".join(texts))
    equations = [copy(math) for article in site.values() for math in article.select(".math")]
    assert equations
    for math in equations:
        number = math.select_one(".eqno")
        assert number is None or squeeze(number.extract().get_text()) in book, f"no number: {math.get_text()}"
        assert squeeze(math.get_text()) not in book, f"not rendered: {math.get_text()}"


def test_figures_have_their_captions(texts, site):
    book = squeeze("".join(texts))
    captions = [caption for article in site.values() for caption in article.select("figcaption .caption-number")]
    assert captions
    for caption in captions:
        assert squeeze(pieces(caption.parent)[0])[:40] in book


def test_fonts_are_embedded(reader):
    objects = [reader.get_object(number) for number in range(1, reader.trailer["/Size"])]
    fonts = [o for o in objects if isinstance(o, dict) and o.get("/Type") == "/Font"]
    assert fonts
    for font in fonts:
        if font["/Subtype"] == "/Type3":
            assert font["/CharProcs"], f"{font} has no glyphs"
        elif font["/Subtype"] != "/Type0":  # of which the font that holds the glyphs is another object
            assert FONT_FILES & set(font["/FontDescriptor"]), f"{font['/BaseFont']} is not embedded"
