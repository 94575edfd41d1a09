"""Open every page of the built site in headless Chromium, in light, dark and at phone width, and look for trouble.

Trouble is a console error, a request to another host or one that fails, an equation that is not rendered, a page wider
than the screen, an image that does not load. Pictures of the pages go to ``_build/screenshots`` for a human to judge.
"""

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

from chapters import ROOT
from playwright.sync_api import sync_playwright

SITE = ROOT / "_build" / "html"
PICTURES = ROOT / "_build" / "screenshots"
VIEWS = {"light": (1280, "light"), "dark": (1280, "dark"), "phone": (390, "light"), "phone-dark": (390, "dark")}
COUNTS = """() => ({
    wider: document.documentElement.scrollWidth - window.innerWidth,
    unrendered: document.querySelectorAll(".math").length - document.querySelectorAll(".math mjx-container").length,
    errors: document.querySelectorAll("mjx-merror, [data-mjx-error]").length,
    unloaded: [...document.images].filter(image => !image.complete || !image.naturalWidth).length,
})"""


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, *arguments):  # a page left while it loads is no error
        pass


def inspect(browser, address, page, view):
    """Open one page in one view, photograph it, and return what is wrong with it."""
    width, scheme = VIEWS[view]
    tab, trouble = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), []
    tab.on("console", lambda m: m.type == "error" and trouble.append(f"console: {m.text} {m.location['url']}"))
    tab.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    # A page that redirects drops what it was loading; that is no failure.
    tab.on("requestfailed", lambda r: r.failure == "net::ERR_ABORTED" or trouble.append(f"failed request: {r.url}"))
    tab.on("request", lambda r: r.url.startswith((address, "data:")) or trouble.append(f"foreign request: {r.url}"))
    tab.goto(f"{address}/{page}", wait_until="networkidle")
    tab.wait_for_function("!window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)")
    trouble += [f"{count} {what}" for what, count in tab.evaluate(COUNTS).items() if count > 0]
    picture = PICTURES / view / page.replace("/", "-").replace(".html", ".png")
    tab.screenshot(path=picture, full_page=True)
    tab.close()
    return trouble


def main():
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        raise SystemExit("expected Chromium on the path (Debian: apt install chromium), found none")
    if not (SITE / "index.html").exists():
        raise SystemExit("the site has not been built: run make book")
    server = QuietServer(("127.0.0.1", 0), partial(QuietHandler, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address, found = f"http://127.0.0.1:{server.server_port}", 0
    pages = sorted(str(p.relative_to(SITE)) for p in SITE.glob("**/*.html") if "_static" not in p.parts)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        for page in pages:
            for view in VIEWS:
                trouble = inspect(browser, address, page, view)
                found += len(trouble)
                print(f"{page} ({view}): {'; '.join(trouble) or 'fine'}")
    server.shutdown()
    print(f"{len(pages)} pages, {len(VIEWS)} views each, {found} troubles; pictures in {PICTURES.relative_to(ROOT)}")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
