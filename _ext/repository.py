"""Decide the address of the repository in one place; without one, pages have no repository, edit or issue button.

It is the environment variable BOOK_REPOSITORY (owner/name), else GITHUB_REPOSITORY as GitHub Actions sets it, else the
git remote `origin` where that is a GitHub address.
"""

import os
import re
import subprocess
from functools import cache

from sphinx.errors import ConfigError

OWNER_NAME = re.compile(r"[\w.-]+/[\w.-]+")
GITHUB_REMOTE = re.compile(r"(?:https://|ssh://git@|git@)github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?")


def find_repository(folder, environment=os.environ):
    """Return ``owner/name`` of the book's GitHub repository, or None where it is not known."""
    for variable in ("BOOK_REPOSITORY", "GITHUB_REPOSITORY"):
        if value := environment.get(variable):
            if not OWNER_NAME.fullmatch(value):
                raise ConfigError(f"{variable}: expected owner/name, got {value!r}")
            return value
    remote = GITHUB_REMOTE.fullmatch(_git(folder, "remote", "get-url", "origin"))
    return remote and remote[1]


def site_address(repository, environment=os.environ):
    """Where the site is published, with a slash at its end; None where that is not known.

    It is the environment variable BOOK_ADDRESS, else the repository's address on GitHub Pages.
    """
    if address := environment.get("BOOK_ADDRESS"):
        return address.rstrip("/") + "/"
    if not repository:
        return None
    owner, name = repository.split("/")
    host = f"https://{owner.lower()}.github.io/"
    return host if name.lower() == f"{owner.lower()}.github.io" else f"{host}{name}/"


@cache
def commit(folder):
    """The commit that a folder is at; None without git."""
    return _git(folder, "rev-parse", "--verify", "HEAD") or None


def _git(folder, *arguments):
    """What git prints in a folder; nothing where it fails."""
    return subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=False).stdout.strip()


def _set_buttons(app, config):
    repository = find_repository(app.srcdir)
    config.html_theme_options |= {
        "repository_url": f"https://github.com/{repository}" if repository else "",
        "use_repository_button": bool(repository),
        "use_edit_page_button": bool(repository),
        "use_issues_button": bool(repository),
    }


def setup(app):
    app.connect("config-inited", _set_buttons, priority=400)
    if address := site_address(find_repository(app.srcdir)):
        app.config.html_baseurl = app.config.ogp_site_url = address
        app.setup_extension("sphinx_sitemap")
        app.config.sitemap_url_scheme = "{link}"
        app.config.sitemap_excludes = ["search.html"]
        app.setup_extension("sphinxext.opengraph")
        app.config.ogp_site_name = app.config.html_title
        app.config.ogp_social_cards = {"image": "_assets/logo.png", "image_mini": "_assets/logo.png"}
    return {"parallel_read_safe": True}
