"""Take the README's figure out of its executed chapter: run ``make book`` first."""

from chapters import ROOT, Chapter

CHAPTER, FIGURE = Chapter(ROOT, "book/idea/krr_vs_network", number=None), "fig-same-time"


def figure(notebook, name):
    """The SVG that the cell of a figure displays."""
    cell = next(c for c in notebook.cells if c.metadata.get("mystnb", {}).get("figure", {}).get("name") == name)
    return next(o.data["image/svg+xml"] for o in cell.outputs if "image/svg+xml" in o.get("data", {}))


if __name__ == "__main__":
    executed = CHAPTER.executed()
    if executed is None:
        raise SystemExit(f"{CHAPTER.docname} has not been executed in its present state: run make book")
    (ROOT / "_assets" / f"{FIGURE}.svg").write_text(figure(executed[0], FIGURE), encoding="utf-8")
