"""Time and memory of the kernels: ``python benchmarks/kernels.py [W1 W2 ... A1]`` prints a table of these workloads.

W1  network of 2 inputs and one hidden layer of 4,096 on 256 points, Gram matrix
W2  4 hidden layers of 2,048: profile of one anchor against 360 points
W3  784 inputs, 2 hidden layers of 1,024 on 512 points, Gram matrix
W4  64 inputs, 3 hidden layers of 512, 10 outputs on 200 points, all pairs of outputs: 2,000 x 2,000
W5  the convolutional network of PyTorch's NTK tutorial on 64 images of 28 x 28, 10 outputs: all pairs, and the trace
W6  4 hidden layers of 10,000 (300 million parameters): profile of one anchor against 360 points
A1  analytic NTK and NNGP, ReLU, depth 4, n points in 10 dimensions

Beside ours run, on the same network: the two recipes of PyTorch's tutorial on neural tangent kernels (the contraction
of Jacobians by `vmap(jacrev)`, and NTK-vector products for every pair of points), a loop of `torch.autograd.grad` over
the samples, all Jacobians in one matrix that is contracted once, and, for a profile, a single forward-mode product. A1
runs beside the formulas written down plainly. W1 to W6 are in float32.

Each row runs in a process of its own, on two threads, and may take 16 GiB and two minutes. Times are medians of five
runs after a first one, of fewer where those would last longer than half a minute, of the first alone where it does. MiB
is the peak of the process over its peak before, with interpreter, network and inputs; the last column is all of it.
"""

import math
import multiprocessing
import resource
import statistics
import sys
import time
from functools import partial
from itertools import pairwise

import torch
from torch import nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap

from ntk_helpers import empirical_ntk, kernels

GIB, SECONDS = 16, 120
PATTERNS = {"full": "iap,jbp->ijab", "trace": "iap,jap->ij"}


def mlp(d_in, width, depth, d_out=1):
    sizes = [d_in, *[width] * depth, d_out]
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def cnn():
    layers = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(22 * 22 * 32, 10))


def ours(model, x1, x2, output):
    return empirical_ntk(model, x1, None if x2 is x1 else x2, output=output)


def functional(model):
    """The outputs of one sample as a function of the parameters, and these."""
    params = {name: p.detach() for name, p in model.named_parameters()}
    return lambda params, sample: functional_call(model, params, sample.unsqueeze(0)).squeeze(0), params


def jacobians(model, x1, x2):
    """Jacobians by each parameter, of one set of points once."""
    function, params = functional(model)
    j1 = list(vmap(jacrev(function), (None, 0))(params, x1).values())
    return j1, j1 if x2 is x1 else list(vmap(jacrev(function), (None, 0))(params, x2).values())


def contraction(model, x1, x2, output):
    j1, j2 = jacobians(model, x1, x2)
    return sum(torch.einsum(PATTERNS[output], a.flatten(2), b.flatten(2)) for a, b in zip(j1, j2, strict=True))


def contracted_once(model, x1, x2, output):
    """One output only."""
    j1, j2 = jacobians(model, x1, x2)
    rows = torch.cat([j.flatten(1) for j in j1], 1)
    return rows @ (rows if j2 is j1 else torch.cat([j.flatten(1) for j in j2], 1)).mT


def vector_products(model, x1, x2, output):
    function, params = functional(model)

    def pair(sample1, sample2):
        value, pull_back = vjp(lambda p: function(p, sample1), params)

        def product(direction):
            return jvp(lambda p: function(p, sample2), (params,), pull_back(direction))[1]

        block = vmap(product)(torch.eye(value.numel()))
        return block.trace() if output == "trace" else block

    return vmap(vmap(pair, (None, 0)), (0, None))(x1, x2)


def loop(model, x1, x2, output):
    params = list(model.parameters())

    def jacobian(x):
        values = (value for sample in x for value in model(sample.unsqueeze(0)).flatten())
        rows = (torch.autograd.grad(value, params, retain_graph=True) for value in values)
        return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).unflatten(0, (len(x), -1))

    j1 = jacobian(x1)
    return torch.einsum(PATTERNS[output], j1, j1 if x2 is x1 else jacobian(x2))


def forward_mode(model, x1, x2, output):
    """One point and output on one side: its gradient, pushed forward to all points of the other."""
    params = {name: p.detach() for name, p in model.named_parameters()}
    value, pull_back = vjp(lambda p: functional_call(model, p, x2), params)
    return jvp(lambda p: functional_call(model, p, x1), (params,), pull_back(torch.ones_like(value)))[1]


PEERS = {"contraction": contraction, "vector products": vector_products, "loop": loop}
ONE_OUTPUT = {"ours": ours, **PEERS, "contracted once": contracted_once}
PROFILE = {"ours": ours, "forward mode": forward_mode, **PEERS}
EMPIRICAL = {  # model, points, points on the other side (None: the same), outputs, methods
    "W1": (partial(mlp, 2, 4096, 1), (256, 2), None, "full", ONE_OUTPUT),
    "W2": (partial(mlp, 2, 2048, 4), (360, 2), 1, "full", PROFILE),
    "W3": (partial(mlp, 784, 1024, 2), (512, 784), None, "full", ONE_OUTPUT),
    "W4": (partial(mlp, 64, 512, 3, 10), (200, 64), None, "full", {"ours": ours, **PEERS}),
    "W5 full": (cnn, (64, 1, 28, 28), None, "full", {"ours": ours, **PEERS}),
    "W5 trace": (cnn, (64, 1, 28, 28), None, "trace", {"ours": ours, **PEERS}),
    "W6": (partial(mlp, 2, 10_000, 4), (360, 2), 1, "full", PROFILE),
}


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


ANALYTIC = {"ours": partial(kernels, depth=4), "plain": partial(plain, depth=4)}


def prepare_empirical(workload, method):
    build, shape, other, output, methods = EMPIRICAL[workload]
    torch.manual_seed(0)
    methods[method](mlp(2, 3, 1), torch.randn(2, 2), torch.randn(2 if other is None else 1, 2), output)
    model, x = build(), torch.randn(shape)
    return lambda: methods[method](model, x, x if other is None else x[:other], output)


def prepare_analytic(n, dtype, method):
    x = torch.randn(n, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    ANALYTIC[method](x[:100])
    return lambda: ANALYTIC[method](x)


def measure(prepare, answer):
    """Median seconds, and peak MiB over what was held before and in all; or why there are none."""
    torch.set_num_threads(2)
    run = prepare()
    resource.setrlimit(resource.RLIMIT_DATA, (GIB * 2**30, GIB * 2**30))
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    try:
        while len(seconds) < 6 and sum(seconds) < 30:
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error):
            raise
        answer.put(f"more than {GIB} GiB")
        return
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer.put((statistics.median(seconds[1:] or seconds), (peak - before) / 1024, peak / 1024))


def row(workload, method, prepare):
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    process = context.Process(target=measure, args=(prepare, answer))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        result = f"more than {SECONDS} s"
    else:
        result = answer.get() if not answer.empty() else "killed"
    text = result if isinstance(result, str) else "{:.3f} {:>9.0f} {:>9.0f}".format(*result)
    print(f"{workload:<22}{method:<18}{text:>30}", flush=True)


def main():
    chosen = sys.argv[1:] or ["W1", "W2", "W3", "W4", "W5", "W6", "A1"]
    print(f"{'workload':<22}{'method':<18}{'seconds':>10}{'MiB':>10}{'in all':>10}")
    for workload, (*_, methods) in EMPIRICAL.items():
        for method in methods if workload.split()[0] in chosen else ():
            row(workload, method, partial(prepare_empirical, workload, method))
    for n in (2000, 4000, 10_000) if "A1" in chosen else ():
        for dtype in (torch.float32, torch.float64):
            for method in ANALYTIC if n < 10_000 else ["ours"]:  # the plain one takes minutes there
                name = f"A1 n={n} {str(dtype).removeprefix('torch.')}"
                row(name, method, partial(prepare_analytic, n, dtype, method))


if __name__ == "__main__":
    main()
