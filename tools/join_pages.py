"""Join the pages of the built site to one HTML page for print: title page, table of contents, chapters.

The pages come in the order of the sidebar; every number, link and output is the site's.
"""

from html import escape
from posixpath import dirname, join, normpath
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup
from inspect_site import SITE
from local_mathjax import BUNDLE

BOOK = f"""<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>{{title}}</title>
<link rel="stylesheet" href="/_static/pygments.css"><link rel="stylesheet" href="/_static/print.css">
{{settings}}<script defer src="/_static/mathjax/{BUNDLE}"></script></head>
<body><header class="title-page"><img src="/_static/logo.svg" alt="{{title}}"><p class="title">{{title}}</p>{{subtitle}}
<p class="author">{{author}}, {{copyright}}</p>{{licence}}</header>
<nav class="contents"><h1>Contents</h1>{{contents}}</nav>{{chapters}}</body></html>"""
CHROME = "a.headerlink, button, details.hide > summary, details.hide .cell_input, .animation > :not(img)"
ENTRY = '<a class="{}" href="#{}"><span>{}</span><span class="page">000</span></a>'


def read(name):
    """A page of the site, parsed."""
    if not (SITE / name).exists():
        raise SystemExit(f"expected the page {name} in {SITE}, found none: run make book")
    return BeautifulSoup((SITE / name).read_text(encoding="utf-8"), "html.parser")


def resolve(name, address):
    """Path, from the top of the site, and fragment of an address in a page."""
    parts = urlsplit(address)
    return normpath(join(dirname(name), unquote(parts.path))) if parts.path else name, parts.fragment


def anchor(name, fragment=""):
    """The id that a page, or an id in it, has in the book: no two pages share one."""
    return name.removesuffix(".html").replace("/", "-") + (fragment and f"--{fragment}")


def sidebar(root):
    """Names of the pages in order, each with the caption of the part that it opens, or none."""
    found, caption = {}, ""
    for entry in read(root).select("nav.bd-links .caption, nav.bd-links a.internal"):
        if "caption" in entry["class"]:
            caption = entry.get_text(strip=True)
        else:
            found[resolve(root, entry["href"])[0]], caption = caption, ""
    return found


def on_paper(article):
    """The article of a page without what is to be clicked, and without the code of folded cells."""
    for chrome in article.select(CHROME):
        chrome.decompose()
    for fold in article.select("details.hide:not(:has(.cell_output))"):
        fold.decompose()
    for scene in article.select("a[href^='#play:']"):
        scene.unwrap()
    return article


def article_of(page, name, names):
    """The article of a page, with its ids and links as they are in the book."""
    article = on_paper(page.select_one("article.bd-article"))
    for tag in article.select("[id]"):
        tag["id"] = anchor(name, tag["id"])
    for heading in article.select("section[id] > :is(h1, h2, h3, h4, h5, h6)"):
        # A page may end between the beginning of a section and its heading: what leads there, leads to the heading.
        heading["id"] = heading.parent["id"]
        del heading.parent["id"]
    for tag in article.select("[src]:not([src^='data:'])"):
        tag["src"] = "/" + resolve(name, tag["src"])[0]
    for link in article.select("a[href]"):
        target, fragment = resolve(name, link["href"])
        if target in names:
            link["href"] = "#" + anchor(target, fragment)
        elif not urlsplit(link["href"]).scheme:
            raise SystemExit(f"{name}: expected a link to another site or to a page of the book, got {link['href']}")
    return article


def take_subtitle(article):
    """Take the subtitle out of the first page, for the title page; what is left there is about the book."""
    subtitle = article.select_one("h1 + p:has(> em:only-child)")
    if subtitle is None:
        raise SystemExit("expected a subtitle in italics below the title of the first page, found none")
    article.h1.string = "About this book"
    return str(subtitle.extract())


def contents_of(article):
    """A page's entries in the table of contents: level, id and title of its headings."""
    for heading in article.select("h1, h2"):
        yield heading.name, heading["id"], heading.decode_contents()


def assemble(config, toc):
    """The whole book as one HTML page, and the entries of its table of contents."""
    names = sidebar(toc["root"] + ".html")
    pages = {name: read(name) for name in names}
    articles = {name: article_of(page, name, names) for name, page in pages.items()}
    subtitle = take_subtitle(next(iter(articles.values())))
    contents, chapters = [], ""
    for name, article in articles.items():
        part = escape(names[name])
        contents += [("part", anchor(name), part)] * bool(part) + list(contents_of(article))
        chapters += f'<div class="chapter" id="{anchor(name)}"><p class="part">{part}</p>{article}</div>'
    scripts = [str(script) for page in pages.values() for script in page.head("script")]
    return BOOK.format(
        settings="".join(dict.fromkeys(script for script in scripts if "window.MathJax" in script)),
        licence=config["html"]["extra_footer"],
        contents="".join(ENTRY.format(*entry) for entry in contents),
        subtitle=subtitle,
        chapters=chapters,
        **{key: escape(config[key]) for key in ("title", "author", "copyright")},
    ), contents
