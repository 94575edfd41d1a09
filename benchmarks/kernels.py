"""Time and memory of the kernels: ``python benchmarks/kernels.py`` prints a table.

Each row runs in a process of its own, on two threads; times are medians of five runs after a warm-up, memory is the
peak of the whole process over what it was before.

A1  analytic NTK and NNGP, ReLU, depth 4, n points in 10 dimensions, against the formulas written down plainly
"""

import math
import multiprocessing
import resource
import statistics
import time

import torch

from ntk_helpers import kernels


def plain(x, depth):
    """The textbook recursion: arccos of the clipped cosine, whole matrices at once."""
    k = 2 / x.shape[1] * x @ x.T
    theta = k
    for _ in range(depth):
        norm = k.diagonal().sqrt()
        scale = torch.outer(norm, norm)
        cosine = (k / scale).clamp(-1, 1)
        angle = torch.acos(cosine)
        k = scale / math.pi * (torch.sin(angle) + (math.pi - angle) * cosine)
        theta = k + theta * (math.pi - angle) / math.pi
    return k, theta


ANALYTIC = {"ours": lambda x: kernels(x, depth=4), "plain": lambda x: plain(x, depth=4)}


def measure(name, n, dtype, answer):
    """Median seconds and peak MiB of one row."""
    torch.set_num_threads(2)
    x = torch.randn(n, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    ANALYTIC[name](x[:100])
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(6):
        start = time.perf_counter()
        result = ANALYTIC[name](x)
        seconds.append(time.perf_counter() - start)
        del result
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    answer.put((statistics.median(seconds[1:]), peak / 1024))


def main():
    context = multiprocessing.get_context("spawn")
    print(f"{'workload':<28}{'method':<10}{'seconds':>10}{'MiB':>10}")
    for n in (2000, 4000, 10_000):
        for dtype in (torch.float32, torch.float64):
            for name in ANALYTIC if n < 10_000 else ["ours"]:  # the plain one takes minutes there
                answer = context.Queue()
                process = context.Process(target=measure, args=(name, n, dtype, answer))
                process.start()
                seconds, peak = answer.get()
                process.join()
                workload = f"A1 n={n} {str(dtype).removeprefix('torch.')}"
                print(f"{workload:<28}{name:<10}{seconds:>10.3f}{peak:>10.0f}", flush=True)


if __name__ == "__main__":
    main()
