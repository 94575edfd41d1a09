"""Open every page of the built site in headless Chromium, in light, dark and at phone width, and look for trouble.

Trouble is a console error, a request to another host or one that fails, an equation that is not rendered, a page wider
than the screen, an image that does not load or has no alt text, and a page that jumps while it loads. Pictures of the
pages go to ``_build/screenshots`` for a human to judge.
"""

import shutil
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import yaml
from chapters import ROOT
from playwright.sync_api import sync_playwright

PATIENCE = 300_000  # milliseconds that a busy machine has for anything a browser is asked to do
SITE = ROOT / "_build" / "html"
PICTURES = ROOT / "_build" / "screenshots"
VIEWS = {"light": (1280, "light"), "dark": (1280, "dark"), "phone": (390, "light"), "phone-dark": (390, "dark")}
NO_CHROMIUM = "expected Chromium on the path (Debian: apt install chromium), found none"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
COUNTS = """() => ({
    wider: document.documentElement.scrollWidth - window.innerWidth,
    unrendered: document.querySelectorAll(".math").length - document.querySelectorAll(".math mjx-container").length,
    errors: document.querySelectorAll("mjx-merror, [data-mjx-error]").length,
    "scripts as large as their base": [...document.querySelectorAll("mjx-script > *")].filter(
        script => parseFloat(script.style.fontSize) > 90).length,
    unloaded: [...document.images].filter(image => !image.complete || !image.naturalWidth).length,
    "without alt": [...document.images].filter(image => !image.alt.trim() || /\\.\\w+$/.test(image.alt.trim())).length,
})"""
# Shifts of what is on the screen, as the Layout Instability API scores them: people notice 0.1 in all.
WATCH_SHIFTS = """window.shift = 0; new PerformanceObserver(list => list.getEntries().forEach(
    entry => window.shift += entry.value)).observe({type: "layout-shift", buffered: true})"""
MOST_SHIFT = 0.05


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, *arguments):  # a page left while it loads is no error
        pass


@contextmanager
def served(site):
    """The address at which a site is served while the context lasts."""
    server = QuietServer(("127.0.0.1", 0), partial(QuietHandler, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def find_chromium():
    """The program, or None where there is none on the path."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def opened():
    """Headless Chromium, while the context lasts."""
    if (executable := find_chromium()) is None:
        raise SystemExit(NO_CHROMIUM)
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=executable, args=FLAGS, timeout=PATIENCE)


def patient(tab):
    """A tab, which then waits longer than by default."""
    tab.set_default_timeout(PATIENCE)
    return tab


def html_pages():
    """The paths of the site's pages, without the old addresses that lead to them."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    old = {SITE / f"{docname}.html" for docname in config["sphinx"]["config"]["redirects"]}
    pages = (p for p in SITE.rglob("*.html") if "_static" not in p.parts and p not in old)
    return sorted(p.relative_to(SITE).as_posix() for p in pages)


def open_page(browser, address, page, view):
    """Open one page in one view; return the tab and what is wrong with it."""
    width, scheme = VIEWS[view]
    size, trouble = {"width": width, "height": 900}, []
    tab = patient(browser.new_page(viewport=size, color_scheme=scheme, reduced_motion="reduce"))
    tab.add_init_script(WATCH_SHIFTS)
    tab.on("console", lambda m: m.type == "error" and trouble.append(f"console: {m.text} {m.location['url']}"))
    tab.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    # A page that redirects drops what it was loading; that is no failure.
    tab.on("requestfailed", lambda r: r.failure == "net::ERR_ABORTED" or trouble.append(f"failed request: {r.url}"))
    tab.on("request", lambda r: r.url.startswith((address, "data:")) or trouble.append(f"foreign request: {r.url}"))
    tab.goto(f"{address}/{page}", wait_until="networkidle")
    tab.wait_for_function("!window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)")
    trouble += [f"{count} {what}" for what, count in tab.evaluate(COUNTS).items() if count > 0]
    if (shift := tab.evaluate("window.shift")) > MOST_SHIFT:
        trouble.append(f"the page jumps while it loads, by {shift:.2f}")
    return tab, trouble


def main():
    if not (SITE / "index.html").exists():
        raise SystemExit("the site has not been built: run make book")
    pages, found = html_pages(), 0
    with opened() as browser, served(SITE) as address:
        for page in pages:
            for view in VIEWS:
                tab, trouble = open_page(browser, address, page, view)
                picture = PICTURES / view / page.replace("/", "-").replace(".html", ".png")
                tab.screenshot(path=picture, full_page=True)
                tab.close()
                found += len(trouble)
                print(f"{page} ({view}): {'; '.join(trouble) or 'fine'}")
    print(f"{len(pages)} pages, {len(VIEWS)} views each, {found} troubles; pictures in {PICTURES}")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
