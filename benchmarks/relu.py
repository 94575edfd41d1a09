"""Time of the ReLU NTK of 2,000 inputs, beside its formulas written down plainly: ``python benchmarks/relu.py``.

One thread; medians of seven runs of either, by turns, after a first one of each.
"""

import math
import statistics
import time

import torch

from ntk_helpers import ntk_kernel


def formulas(x, depth):
    """By matrix product, norms and arccos."""
    kernel = 2 / x.shape[1] * (x @ x.T)
    ntk = kernel.clone()
    for _ in range(depth):
        norm = kernel.diagonal().sqrt()
        scale = norm[:, None] * norm
        cos = (kernel / scale).clamp(-1, 1)
        theta = torch.arccos(cos)
        kernel = scale * (torch.sqrt(1 - cos.square()) + (math.pi - theta) * cos) / math.pi
        ntk = kernel + (math.pi - theta) / math.pi * ntk
    return ntk


def seconds(function, *args, **options):
    start = time.perf_counter()
    function(*args, **options)
    return time.perf_counter() - start


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| dimensions | dtype | depth | ours (s) | formulas (s) | ratio |\n|--:|:--|--:|--:|--:|--:|")
    for d in (10, 784, 3072):
        for dtype in (torch.float32, torch.float64):
            x = torch.randn(2000, d, dtype=dtype, generator=torch.Generator().manual_seed(0))
            for depth in (1, 4):
                runs = [(seconds(ntk_kernel, x, depth=depth, b_std=0.0), seconds(formulas, x, depth)) for _ in range(8)]
                ours, plain = (statistics.median(column[1:]) for column in zip(*runs, strict=True))
                print(f"| {d:,} | {dtype} | {depth} | {ours:.3f} | {plain:.3f} | {ours / plain:.2f} |", flush=True)
