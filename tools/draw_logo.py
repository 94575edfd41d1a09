"""Draw the logo and the favicon: the NTK of a bias-free ReLU network on the unit circle, for several depths.

A curve's height over the angle gamma, from -pi to pi, is Theta(x_0, x_gamma) / Theta(x_0, x_0).
"""

from pathlib import Path

import torch

from ntk_helpers import ntk_kernel

ASSETS = Path(__file__).parents[1] / "_assets"
COLOURS = {1: "#56B4E9", 4: "#0072B2", 16: "#D55E00"}


def path(depth, points=121):
    """SVG path of the curve, on a canvas of 100 by 100 with the peak in the middle."""
    angles = torch.linspace(-torch.pi, torch.pi, points, dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    profile = ntk_kernel(circle, circle[[points // 2]], depth=depth).squeeze(1)
    heights = (profile / profile.max()).tolist()
    xy = zip((50 + 44 * angles / torch.pi).tolist(), (84 - 72 * height for height in heights), strict=True)
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in xy)


def svg(depths, stroke):
    """An SVG image of the profiles of the given depths, behind one another."""
    style = f'fill="none" stroke-width="{stroke}" stroke-linejoin="round" stroke-linecap="round"'
    paths = "\n".join(f'  <path d="{path(depth)}" stroke="{COLOURS[depth]}" {style}/>' for depth in depths)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">\n{paths}\n</svg>\n'


if __name__ == "__main__":
    (ASSETS / "logo.svg").write_text(svg([1, 4, 16], stroke=5), encoding="utf-8")
    (ASSETS / "favicon.svg").write_text(svg([1, 16], stroke=9), encoding="utf-8")
