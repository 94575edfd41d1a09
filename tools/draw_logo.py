"""Draw the logo, also as pixels for previews of links, and the favicon.

They show the NTK of a bias-free ReLU network on the unit circle, for several depths. A curve's height over the angle
gamma, from -pi to pi, is Theta(x_0, x_gamma) / Theta(x_0, x_0).
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from ntk_helpers import ntk_kernel

ASSETS = Path(__file__).parents[1] / "_assets"
COLOURS = {1: "#56B4E9", 4: "#0072B2", 16: "#D55E00"}


def curve(depth, points=121):
    """Points (x, y) of the curve, on a canvas of 100 by 100 with the peak in the middle, and y downwards."""
    angles = torch.linspace(-torch.pi, torch.pi, points, dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    profile = ntk_kernel(circle, circle[[points // 2]], depth=depth).squeeze(1)
    heights = (profile / profile.max()).tolist()
    return (50 + 44 * angles / torch.pi).tolist(), [84 - 72 * height for height in heights]


def path(depth):
    """SVG path of the curve."""
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in zip(*curve(depth), strict=True))


def svg(depths, stroke):
    """An SVG image of the profiles of the given depths, behind one another."""
    style = f'fill="none" stroke-width="{stroke}" stroke-linejoin="round" stroke-linecap="round"'
    paths = "\n".join(f'  <path d="{path(depth)}" stroke="{COLOURS[depth]}" {style}/>' for depth in depths)
    size = 'viewBox="0 0 100 100" width="100" height="100"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n{paths}\n</svg>\n'


def draw_png(file, depths, stroke, pixels=400):
    """The same as pixels, on a transparent ground."""
    fig = plt.figure(figsize=(1, 1))
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, 100), ylim=(100, 0))
    ax.axis("off")
    for depth in depths:  # a stroke is in hundredths of the side, a line width in points, of which the side has 72
        ax.plot(*curve(depth), color=COLOURS[depth], linewidth=0.72 * stroke, solid_capstyle="round")
    fig.savefig(file, dpi=pixels, transparent=True, metadata={"Software": None})


if __name__ == "__main__":
    (ASSETS / "logo.svg").write_text(svg([1, 4, 16], stroke=5), encoding="utf-8")
    (ASSETS / "favicon.svg").write_text(svg([1, 16], stroke=9), encoding="utf-8")
    draw_png(ASSETS / "logo.png", [1, 4, 16], stroke=5)
