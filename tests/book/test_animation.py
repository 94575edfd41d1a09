import json
import re
from base64 import b64decode
from io import BytesIO

import matplotlib as mpl
import numpy as np
import pytest
from bs4 import BeautifulSoup
from PIL import Image

mpl.use("agg")

import matplotlib.pyplot as plt

from ntk_helpers.book.animation import animate


def moving(frames=(0.0, 0.5, 1.0), alt='A "dot" that rises'):
    figure, ax = plt.subplots(figsize=(3, 2))
    ax.set(xlim=(-1, 1), ylim=(0, 1))
    (dot,) = ax.plot([0], [0.0], "ko", markersize=20, clip_on=False)
    return animate(figure, lambda height: dot.set_ydata([height]), frames, alt=alt)


def decoded(address):
    return np.asarray(Image.open(BytesIO(b64decode(address.removeprefix("data:image/webp;base64,")))).convert("L"))


def test_frames_are_what_was_drawn():
    frames = json.loads(re.search(r"const frames = (.*?), box", moving().data)[1])
    assert len(frames) == 3
    rows = []
    for frame in map(decoded, frames):
        assert frame.shape == (2 * 144, 3 * 144)
        middle = frame[:, frame.shape[1] // 2 - 20 : frame.shape[1] // 2 + 60]
        dark = np.nonzero((middle < 60).sum(axis=1) > 20)[0]  # wider than the text and the axes are
        rows.append(dark.mean())
    assert rows[0] > rows[1] > rows[2]
    assert rows[0] - rows[1] == pytest.approx(rows[1] - rows[2], abs=2)


def test_the_last_frame_stays_with_its_alt_text_and_size():
    html = moving().data
    image = BeautifulSoup(html, "html.parser").img
    assert image["src"] == json.loads(re.search(r"const frames = (.*?), box", html)[1])[-1]
    assert image["alt"] == 'A "dot" that rises'
    assert (image["width"], image["height"]) == ("288", "192")


def test_same_figure_same_html_and_closed():
    plt.close("all")
    assert moving().data == moving().data
    assert plt.get_fignums() == []


def test_what_is_refused():
    with pytest.raises(ValueError, match="frames: expected at least two, got 1"):
        moving(frames=[0.0])
    with pytest.raises(ValueError, match="alt: expected a text, got an empty one"):
        moving(alt=" ")
