"""Numbers from the computation, in prose and claims, as a printer sets them: a true minus, and powers of ten."""

import re

from docutils import nodes

POWER = re.compile(r"(?P<factor>\d+(?:\.\d+)?)e(?P<sign>[+\-−])0*(?P<exponent>\d+)")
MINUS = re.compile(r"(?<![^\s(\[])-(?=\d)")
SUPERSCRIPTS = str.maketrans("-−0123456789", "⁻⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
CLAIM = '<p class="claim"'
BETWEEN_TAGS = re.compile(r"(?<=>)[^<]+")


def typeset(text):
    """A text in which Python has written numbers: "-0.5" and "2e-14" become "−0.5" and "2·10⁻¹⁴"."""
    return MINUS.sub("\N{MINUS SIGN}", POWER.sub(_power, text))


def _power(match):
    power = "10" + (match["sign"].lstrip("+") + match["exponent"]).translate(SUPERSCRIPTS)
    return power if match["factor"] == "1" else f"{match['factor']}·{power}"


def _typeset_numbers(app, doctree):
    for node in doctree.findall(nodes.inline):
        if "pasted-text" in node["classes"]:
            node.children = [nodes.Text(typeset(node.astext()))]
    for node in doctree.findall(nodes.raw):
        if node.astext().startswith(CLAIM):
            node.children = [nodes.Text(BETWEEN_TAGS.sub(lambda text: typeset(text[0]), node.astext()))]


def setup(app):
    app.connect("doctree-read", _typeset_numbers)
    return {"parallel_read_safe": True}
