"""Everything that a reader can click, on the site as it was built."""

import gzip
import re
import shutil
import zipfile
from functools import cache
from importlib.metadata import version
from urllib.parse import unquote, urljoin, urlsplit

import nbformat
import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from chapters import ROOT, chapters
from glued_numbers import typeset
from inspect_site import open_page, patient
from plain_notebooks import notebook_path
from site_archive import NAME as ARCHIVE

import ntk_helpers
from ntk_helpers.book.claims import KINDS, measured_text, recorded_claims

CHAPTER = next(chapter for chapter in chapters() if chapter.number)  # the first cell of the home page is folded
CHAPTER_PAGE = f"{CHAPTER.docname}.html"
WITH_SOLUTIONS = [c for c in chapters() if "{solution-start}" in c.path.read_text(encoding="utf-8")]
IMAGE = "img:not([src^='data:'])"  # such a one is a part of its page
SERIOUS = ("serious", "critical")
MOST_BYTES = 1_500_000
OF_EXTENSIONS = {"exercise-content", "proof", "proof-content", "solution-content"}  # ids that nothing leads to
UNFOLD = """() => { document.querySelectorAll("details").forEach(details => details.open = true)
    document.querySelectorAll("button.toggle-button").forEach(button => button.click()) }"""
STILL = "* { transition: none !important; animation: none !important }"
UNSEEN_FOCUS = """() => { const element = document.activeElement, style = getComputedStyle(element)
    const drawn = style.outlineStyle !== "none" || style.boxShadow !== "none"
    if (element !== document.body && !(drawn && style.opacity > 0.9))
        return element.outerHTML.slice(0, 200) }"""
# In one go: on a busy machine, an animation may be over before the next step of a test.
PAUSE_AT_TWO = """([slider, button]) => +slider.value >= 2 && +slider.value < +slider.max
    && button.textContent === "Pause" && (button.click(), true)"""
# What the button of an animation said, one after the other.
WATCH_BUTTONS = """window.said = {}; new MutationObserver(records => records.forEach(({target, removedNodes}) => {
    const id = target.tagName === "BUTTON" && target.closest(".animation")?.id
    if (id && removedNodes.length) (said[id] ??= []).push(target.textContent)
})).observe(document, {subtree: true, childList: true})"""
SAID = "id => said[id] ?? []"
FOLD_LABEL = "details.hide > summary > .collapsed"
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
REDIRECTS = CONFIG["sphinx"]["config"]["redirects"]
INTERACTIVE = "a[href], button, summary, input, select, textarea, [tabindex='0']"


@cache
def parse(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@pytest.mark.parametrize("view", ["light", "dark", "phone"])
def test_page_is_in_order_and_accessible(browser, address, page, view):
    tab, trouble = open_page(browser, address, page, view)
    tab.add_style_tag(content=STILL)  # what is still fading in has no contrast yet
    tab.evaluate(UNFOLD)
    trouble = list(trouble)  # axe asks for style sheets at addresses of its own, which is no fault of the page
    for violation in violations(tab, view):
        places = "; ".join(node["html"][:150] for node in violation["nodes"][:3])
        finding = f"axe, {violation['impact']}: {violation['id']}, {len(violation['nodes'])} times: {places}"
        print(f"{page} ({view}): {finding}")
        trouble += [finding] * (violation["impact"] in SERIOUS)
    tab.close()
    assert trouble == []


def violations(tab, view):
    """What axe finds. The contrast of code, most of its work, depends on the theme, not on the width of the screen."""
    if view != "phone":
        return Axe().run(tab).response["violations"]
    all_but_contrast = Axe().run(tab, options={"rules": {"color-contrast": {"enabled": False}}})
    only_contrast = {"runOnly": ["color-contrast"]}
    outside_code = Axe().run(tab, context={"exclude": [[".highlight pre"]]}, options=only_contrast)
    return all_but_contrast.response["violations"] + outside_code.response["violations"]


def is_a_place(path, fragment):
    """Whether a fragment leads to something on a page: an element, or a scene of its playground."""
    wanted = {"data-live": "playground"} if fragment.startswith("play:") else {"id": fragment}
    return parse(path).find(attrs=wanted)


def test_links_lead_somewhere(site, page):
    for tag in parse(site / page).select("[href], [src]"):
        target = tag.get("href", tag.get("src"))
        parts = urlsplit(urljoin(page, target))
        if parts.scheme == "data":
            continue
        if parts.scheme or target.startswith("//"):
            assert tag.name == "a", f"{tag} comes from elsewhere"
            assert parts.scheme in ("https", "mailto"), target
            continue
        file = site / unquote(parts.path)
        assert file.is_file(), f"{page}: {target} leads nowhere"
        if parts.fragment and file.suffix == ".html":
            assert is_a_place(file, unquote(parts.fragment)), f"{page}: there is no {target}"


def test_ids_are_unique(site, page):
    ids = [tag["id"] for tag in parse(site / page).select("article [id]")]
    doubled = {one for one in ids if ids.count(one) > 1}
    assert doubled <= OF_EXTENSIONS


def test_page_is_light(browser, address, site, page):
    """What a page adds to the site, as it is; and all that a first visit loads, packed as the web packs it."""
    images = {(site / page).parent / unquote(image["src"]) for image in parse(site / page).select(f"article {IMAGE}")}
    own = [site / page, *images]
    own_bytes = sum(path.stat().st_size for path in own)
    tab, urls = patient(browser.new_page(viewport={"width": 1280, "height": 900})), set()
    tab.on(
        "request", lambda request: request.url.startswith(address) and urls.add(unquote(urlsplit(request.url).path[1:]))
    )
    tab.goto(f"{address}/{page}", wait_until="networkidle")
    tab.close()
    first = sum(len(gzip.compress((site / url).read_bytes())) for url in urls)
    print(f"{page}: {own_bytes / 1000:.0f} kB of its own, {first / 1000:.0f} kB packed at a first visit")
    assert own_bytes < MOST_BYTES
    assert first < MOST_BYTES


def test_animations_play(tab, address, site, page):
    tab.emulate_media(reduced_motion="reduce")
    for animation in parse(site / page).select(".animation"):
        tab.goto(f"{address}/{page}")
        box = tab.locator(f"#{animation['id']}")
        image, button, slider = (box.locator(tag) for tag in ("img", "button", "input"))
        last = image.get_attribute("src")
        assert slider.input_value() == slider.get_attribute("max")
        slider.press("Home")
        assert slider.input_value() == "0"
        assert image.get_attribute("src") != last
        button.click()
        tab.wait_for_function(PAUSE_AT_TWO, arg=[slider.element_handle(), button.element_handle()])
        assert button.inner_text() == "Play"
        slider.press("End")
        assert image.get_attribute("src") == last
        button.click()  # from the start again, to the end
        tab.wait_for_function("slider => slider.value === slider.max", arg=slider.element_handle())
        tab.wait_for_function("button => button.textContent === 'Play'", arg=button.element_handle())


def test_animations_play_once_when_they_are_seen(tab, address, site, page):
    tab.add_init_script(WATCH_BUTTONS)
    for animation in parse(site / page).select(".animation"):
        tab.goto(f"{address}/{page}")
        box = tab.locator(f"#{animation['id']}")
        on_first_screen = box.bounding_box()["y"] < tab.viewport_size["height"]
        assert on_first_screen or tab.evaluate(SAID, animation["id"]) == []
        box.locator("button").scroll_into_view_if_needed()
        tab.wait_for_function(f"id => ({SAID})(id).length === 2", arg=animation["id"])
        assert tab.evaluate(SAID, animation["id"]) == ["Pause", "Play"]


def test_images_say_their_size(site, page):
    for image in parse(site / page).select(IMAGE):
        assert image.get("width", "").isdigit(), image
        assert image.get("height", "").isdigit(), image


@pytest.fixture(params=["served", "file"])
def home(request, site, tmp_path):
    """Where the site is: served, or copied to a folder and opened from there."""
    if request.param == "served":
        return request.getfixturevalue("address")
    shutil.copytree(site, tmp_path / "copy")
    return (tmp_path / "copy").as_uri()


def test_search_finds_a_term(tab, home):
    tab.goto(f"{home}/{CHAPTER_PAGE}")
    tab.click(".search-button-field")
    tab.keyboard.type(re.sub(r"\W+", " ", CHAPTER.read().cells[0].source.splitlines()[0]))
    tab.keyboard.press("Enter")
    found = tab.locator(f"#search-results a[href*='{CHAPTER_PAGE}']").first
    found.wait_for()
    found.click()
    tab.wait_for_url(re.compile(re.escape(CHAPTER_PAGE)))


def test_theme_switch_works_and_is_remembered(tab, home):
    tab.goto(f"{home}/{CHAPTER_PAGE}")
    ground = "getComputedStyle(document.body).backgroundColor"
    seen = set()
    for _ in range(3):
        tab.locator(".theme-switch-button").first.click()
        seen.add((tab.get_attribute("html", "data-theme"), tab.evaluate(ground)))
    assert {theme for theme, _ in seen} == {"light", "dark"}
    assert len({colour for _, colour in seen}) == 2
    mode = tab.get_attribute("html", "data-mode")
    tab.goto(f"{home}/book/intro.html")
    assert tab.get_attribute("html", "data-mode") == mode


def test_copy_button_copies_the_code(tab, address):
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.goto(f"{address}/{CHAPTER_PAGE}")
    cell = next(cell for cell in CHAPTER.read().cells if cell.cell_type == "code")
    tab.hover("div.cell_input div.highlight >> nth=0")
    tab.click("div.cell_input button.copybtn >> nth=0")
    tab.wait_for_function("navigator.clipboard.readText().then(text => text.length > 0)")
    assert tab.evaluate("navigator.clipboard.readText()").strip() == cell.source.strip()


@pytest.mark.parametrize("chapter", WITH_SOLUTIONS, ids=lambda chapter: chapter.docname)
def test_solutions_open(tab, address, chapter):
    tab.goto(f"{address}/{chapter.docname}.html")
    solutions = tab.locator("div.solution.dropdown")
    assert solutions.count() == chapter.path.read_text(encoding="utf-8").count("{solution-start}")
    for index in range(solutions.count()):
        content = solutions.nth(index).locator("> section")
        assert not content.is_visible()
        solutions.nth(index).locator("button.toggle-button").click()
        content.wait_for(state="visible")


def download(tab, label):
    """Click on a button among the downloads; return the file that comes."""
    tab.click(".dropdown-download-buttons button")
    with tab.expect_download() as coming:
        tab.click(f".btn-{label}")
    return coming.value.path()


def test_downloads(tab, address, site):
    tab.goto(f"{address}/{CHAPTER_PAGE}")
    notebook = nbformat.read(download(tab, "download-notebook-button"), as_version=4)
    nbformat.validate(notebook)
    assert CHAPTER.read().cells[0].source.splitlines()[0] in notebook.cells[1].source
    tab.reload()
    assert download(tab, "download-source-button").read_text(encoding="utf-8") == CHAPTER.path.read_text(
        encoding="utf-8"
    )
    tab.reload()
    with zipfile.ZipFile(download(tab, "download-site-button")) as archive:
        names = {name.split("/", 1)[1] for name in archive.namelist()}
    assert names == {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file()} - {ARCHIVE}


def test_every_chapter_offers_its_notebook(site):
    for chapter in chapters():
        button = parse(site / f"{chapter.docname}.html").select_one(".btn-download-notebook-button")
        path = ((site / chapter.docname).parent / button["href"]).resolve()
        assert path == (site / "notebooks" / notebook_path(chapter.docname)).resolve()
        nbformat.validate(nbformat.read(path, as_version=4))


def test_colab_opens_notebooks_that_are_published(published):
    for chapter in chapters():
        (button,) = parse(published / f"{chapter.docname}.html").select(".btn-colab-button")
        branch = "https://colab.research.google.com/github/owner/name/blob/gh-pages/"
        path = f"notebooks/{notebook_path(chapter.docname)}"
        assert button["href"] == branch + path
        source = (published / path).read_text(encoding="utf-8")
        assert re.search(r"%pip install --quiet --no-deps git\+https://github\.com/owner/name@[0-9a-f]{40}", source)


def test_links_of_notebooks_lead_to_places_on_the_site(published):
    for chapter in chapters():
        notebook = nbformat.read(published / "notebooks" / notebook_path(chapter.docname), as_version=4)
        text = "\n".join(cell.source for cell in notebook.cells)
        links = re.findall(r"\]\(https://owner\.github\.io/name/([^)]*)\)", text)
        assert links
        for link in links:
            path, _, fragment = link.partition("#")
            assert not fragment or is_a_place(published / path, unquote(fragment)), link


def test_no_colab_button_where_nothing_is_published(site):
    if parse(site / "book/intro.html").find("link", rel="canonical"):
        pytest.skip("the site was built where its address is known")
    for chapter in chapters():
        assert not parse(site / f"{chapter.docname}.html").select(".btn-colab-button")


@pytest.mark.parametrize("kind", ["og:title", "og:description", "og:url", "og:image"])
def test_previews(published, kind):
    for chapter in chapters():
        (tag,) = parse(published / f"{chapter.docname}.html").select(f"meta[property='{kind}']")
        assert tag["content"]
        if kind == "og:image":
            assert (published / tag["content"].removeprefix("https://owner.github.io/name/")).exists()


def test_every_chapter_says_what_it_took_and_how_to_cite_it(site):
    for chapter in chapters():
        page = parse(site / f"{chapter.docname}.html")
        facts = page.select_one(".page-facts").get_text()
        assert f"Executed in {chapter.executed().run_time}" in " ".join(facts.split())
        assert re.search(r"@incollection\{kernelregimes-[\w-]+,", facts)
        assert page.select(".prev-next-area a")
        assert page.select("nav.page-toc a")


def test_the_account_of_the_build_is_of_this_build(site):
    times, mutants, *versions = parse(site / "book/reference/build.html").select("article table")
    rows = {tuple(row.get_text(" ").split()) for row in times.select("tbody tr")}
    took = {row[0]: (float(row[-2]), row[-1]) for row in rows}
    assert took == {chapter.docname: (round(chapter.executed().seconds, 2), "✓") for chapter in chapters()}
    assert mutants.select("tbody tr")[-1].td.get_text() == "all"
    for table in versions:
        assert f"torch {version('torch')}" in " ".join(table.get_text(" ").split())


def test_the_scoreboard_is_of_this_build(site):
    rows = parse(site / "book/reference/scoreboard.html").select(".scoreboard tbody tr")
    listed = [(unquote(row.a["href"]), *(cell.get_text() for cell in row.select("td"))) for row in rows]
    recorded = [(c.docname, record) for c in chapters() for record in recorded_claims(c.executed().notebook)]
    assert len(listed) == len(recorded)
    for (link, claim, kind, expected, measured), (docname, record) in zip(listed, recorded, strict=True):
        assert urljoin("book/reference/scoreboard.html", link) == f"{docname}.html#claim-{record['name']}"
        assert claim == typeset(f"{record['statement']} ({record['source']})")
        assert (kind, expected, measured) == (
            record["kind"],
            typeset(record["expected"]),
            typeset(measured_text(record)),
        )


def test_claims_are_counted_by_kind(site):
    *_, book = parse(site / "book/reference/scoreboard.html").select(".counts tbody tr")
    kinds = [record["kind"] for c in chapters() for record in recorded_claims(c.executed().notebook)]
    counts = [str(kinds.count(kind)) for kind in KINDS]
    assert [cell.get_text() for cell in book.select("td")] == ["the book", *counts, str(len(kinds))]


def test_one_switch_unfolds_all_code_and_is_remembered(tab, home):
    tab.goto(f"{home}/{CHAPTER_PAGE}")
    folded, unfolded = "details.hide:not([open])", "details.hide[open]"
    count = tab.locator("details.hide").count()
    assert tab.locator(folded).count() == count > 0
    assert tab.locator(f"{folded} .cell_input >> visible=true").count() == 0
    tab.click(".btn-all-code-button")
    assert tab.locator(unfolded).count() == count
    assert tab.get_attribute(".btn-all-code-button", "aria-pressed") == "true"
    tab.goto(f"{home}/book/intro.html")
    tab.locator(unfolded).first.wait_for()
    tab.click(".btn-all-code-button")
    tab.goto(f"{home}/{CHAPTER_PAGE}")
    assert tab.locator(folded).count() == count


def test_a_link_to_a_folded_claim_unfolds_it(tab, address, site):
    claim = parse(site / CHAPTER_PAGE).select_one("details.hide .claim")
    tab.goto(f"{address}/{CHAPTER_PAGE}#{claim['id']}")
    tab.locator(f"#{claim['id']}").wait_for(state="visible")


def test_folded_cells_say_what_is_inside(site):
    said = {label.get_text() for c in chapters() for label in parse(site / f"{c.docname}.html").select(FOLD_LABEL)}
    assert said == {"Show the check", "Checks", "Show how this is drawn", "Show code"}


def test_old_addresses_lead_on(tab, address):
    for old, new in REDIRECTS.items():
        target = urljoin(old, new)
        tab.goto(f"{address}/{old}.html#there")
        tab.wait_for_url(f"{address}/{target}#there")


def test_the_package_is_listed_name_by_name(site):
    described = {tag["id"] for tag in parse(site / "book/reference/api.html").select("dt[id]")}
    assert {f"ntk_helpers.{name}" for name in ntk_helpers.__all__} <= described


def test_keyboard_reaches_everything(tab, address):
    """Tab goes through all that can be clicked, and shows where it is; what opens opens by Enter."""
    tab.goto(f"{address}/{WITH_SOLUTIONS[0].docname}.html", wait_until="networkidle")
    tab.add_style_tag(content=STILL)
    wanted = tab.evaluate(
        """selector => [...document.querySelectorAll(selector)].filter(element => element.checkVisibility(
            {visibilityProperty: true, opacityProperty: true}) && element.tabIndex >= 0 && !element.disabled
            && element.getClientRects().length).map((element, i) => element.dataset.wanted = i).length""",
        INTERACTIVE,
    )
    # Buttons that hide until they are reached are stops, too.
    stops = tab.evaluate("selector => document.querySelectorAll(selector).length", INTERACTIVE)
    reached, unseen = set(), set()
    for _ in range(stops + 50):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.dataset.wanted"))
        unseen.add(tab.evaluate(UNSEEN_FOCUS))
    assert unseen == {None}
    missed = set(map(str, range(wanted))) - reached
    elements = [
        tab.evaluate(f"document.querySelector('[data-wanted=\"{i}\"]').outerHTML.slice(0, 200)") for i in missed
    ]
    assert not missed, elements
    tab.locator("div.solution button.toggle-button").first.focus()
    tab.keyboard.press("Enter")
    tab.locator("div.solution > section").first.wait_for(state="visible")
    tab.locator(".page-facts summary").focus()
    tab.keyboard.press("Enter")
    tab.locator(".page-facts pre").wait_for(state="visible")
