"""Pages that go deeper: a box at the end of a chapter lists them, and on each a label names its chapter.

They are nested under the chapter in the table of contents. What one adds it says in a line `deeper:` of its header.
"""

from docutils import nodes


def _link(app, docname, target):
    title = app.env.titles[target].astext()
    return nodes.reference("", title, internal=True, refuri=app.builder.get_relative_uri(docname, target))


def _adds(app, page):
    """The sentence that says what a page adds; the lint of chapters sees to it that there is one."""
    return str(app.env.metadata[page].get("deeper", ""))


def _box(app, docname, below):
    items = [
        nodes.list_item("", nodes.paragraph("", "", _link(app, docname, p), nodes.Text(": " + _adds(app, p))))
        for p in below
    ]
    title = nodes.title("", "Going deeper")
    return nodes.admonition("", title, nodes.bullet_list("", *items), classes=["admonition", "going-deeper"])


def _label(app, docname, above):
    words = [nodes.Text("Going deeper into "), _link(app, docname, above), nodes.Text(". " + _adds(app, docname))]
    return nodes.paragraph("", "", *words, classes=["goes-deeper"])


def _place(app, doctree, docname):
    """Put the box and the label in their places."""
    contents = app.env.external_site_map
    if docname not in contents or docname == contents.root.docname:
        return
    page = next(doctree.findall(nodes.section))
    if below := list(contents[docname].child_files()):
        page += _box(app, docname, below)
    chapters = [c for c in contents.values() if c.docname != contents.root.docname and docname in c.child_files()]
    for chapter in chapters:
        page.insert(1, _label(app, docname, chapter.docname))


def setup(app):
    app.connect("doctree-resolved", _place, priority=400)  # before others make something of the finished page
    return {"parallel_read_safe": True}
