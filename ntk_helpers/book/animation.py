"""Figures that move, for notebooks and pages: frames, a button and a slider, all in one piece of HTML."""

import html
import json
from base64 import b64encode
from collections.abc import Callable, Iterable
from hashlib import sha256
from io import BytesIO
from typing import TypeVar

import matplotlib.pyplot as plt
from IPython.display import HTML
from matplotlib.figure import Figure
from PIL import Image

Frame = TypeVar("Frame")

CSS_INCH, DOTS_PER_INCH = 96, 144  # sharp on most screens
COLOURS = 32  # of a palette that all frames share: a third of the bytes, and lines look the same
SECONDS = 4.5  # what moves by itself must stop within five (WCAG 2.2.2)

# Whoever prints the page, runs no scripts, or asked for reduced motion sees the last frame.
PAGE = """<div class="animation" id="{id}" style="max-width: {width}px">
<img src="{last}" alt="{alt}" width="{width}" height="{height}" style="max-width: 100%; height: auto">
<div class="animation-controls" style="display: flex; gap: 0.5rem; align-items: center">
<button type="button" style="width: 4.5rem">Play</button>
<input type="range" min="0" max="{most}" value="{most}" aria-label="Frame" style="flex: 1">
</div>
<script>
(() => {{
  const frames = {frames}, box = document.getElementById("{id}")
  const [image, button, slider] = ["img", "button", "input"].map(tag => box.querySelector(tag))
  let timer = null
  const show = frame => {{ slider.value = frame; image.src = frames[frame] }}
  const stop = () => {{ clearInterval(timer); timer = null; button.textContent = "Play" }}
  const step = () => slider.value === slider.max ? stop() : show(+slider.value + 1)
  const play = () => {{
    if (slider.value === slider.max) show(0)
    timer = setInterval(step, {pause})
    button.textContent = "Pause"
  }}
  button.addEventListener("click", () => timer === null ? play() : stop())
  slider.addEventListener("input", () => {{ stop(); show(+slider.value) }})
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches)
    new IntersectionObserver((entries, observer) => {{
      if (entries.some(entry => entry.isIntersecting)) {{ observer.disconnect(); play() }}
    }}, {{threshold: 0.8}}).observe(image)
}})()
</script>
</div>"""


def animate(figure: Figure, draw: Callable[[Frame], object], frames: Iterable[Frame], *, alt: str) -> HTML:
    """Show a figure that moves: once by itself when it comes into view, and by a button and a slider.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Closed afterwards, so that the notebook does not show it a second time.
    draw : callable
        ``draw(frame)`` changes the figure into that of one frame: by new data of its lines, say.
    frames : sequence
        At least two, shown evenly over 4.5 seconds. The last one is what remains in print.
    alt : str
        What the animation shows, for those who do not see it.

    Returns
    -------
    IPython.display.HTML
        Complete in itself, with some 20 kB for a frame.
    """
    frames = list(frames)
    if len(frames) < 2:
        raise ValueError(f"frames: expected at least two, got {len(frames)}")
    if not alt.strip():
        raise ValueError("alt: expected a text, got an empty one")
    images = _encoded([_image(figure, draw, frame) for frame in frames])
    plt.close(figure)
    width, height = (round(CSS_INCH * inches) for inches in figure.get_size_inches())
    page = PAGE.format(
        id=f"animation-{sha256(''.join(images).encode()).hexdigest()[:12]}",
        last=images[-1],
        alt=html.escape(" ".join(alt.split())),
        width=width,
        height=height,
        most=len(images) - 1,
        frames=json.dumps(images),
        pause=round(1000 * SECONDS / len(images)),
    )
    return HTML(page)


def _image(figure, draw, frame):
    """The figure with one frame drawn."""
    draw(frame)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return Image.open(buffer).convert("RGB")


def _encoded(images):
    """Images as addresses that hold them, in the colours of the last one."""
    palette = images[-1].quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE)
    addresses = []
    for image in images:
        buffer = BytesIO()
        reduced = image.quantize(palette=palette, dither=Image.Dither.NONE).convert("RGB")
        reduced.save(buffer, format="webp", lossless=True, method=6)
        addresses.append(f"data:image/webp;base64,{b64encode(buffer.getvalue()).decode()}")
    return addresses
