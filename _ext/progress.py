"""Say how long each chapter took: on the console as it is read, and in its page by the role ``{run-time}``.

The text of the role is what stands there for a page that was not executed.
"""

import time

from docutils import nodes
from execution_cache import executed_page
from sphinx.util.docutils import SphinxRole


class run_time(nodes.inline):
    """Stands for the run time of the chapter until that is known."""


class RunTimeRole(SphinxRole):
    def run(self):
        return [run_time(self.rawtext, self.text)], []


def _start(app, docname, source):
    app.env.temp_data["reading_since"] = time.perf_counter()
    print(docname, flush=True)


def _finish(app, doctree):
    took = time.perf_counter() - app.env.temp_data["reading_since"]
    executed = executed_page(app, app.env.docname)
    for node in list(doctree.findall(run_time)):
        node.replace_self(nodes.Text(executed.run_time if executed else node.astext()))
    if executed:
        how = "executed in" if executed.seconds < took else "outputs from the cache; executing them took"
        print(f"  {how} {executed.seconds:.1f} s", flush=True)


def setup(app):
    app.add_role("run-time", RunTimeRole())
    app.connect("source-read", _start)
    app.connect("doctree-read", _finish)
    return {"parallel_read_safe": True}
