"""Time of training: ``python benchmarks/training.py [T1 T2 T3 T4 general]`` prints a table of these workloads.

T1       10 seeds of one hidden layer of 1,024 on 64 points of the plane, 10,000 steps
T2       10 seeds of each of the widths 2, 4, 6, 8, 10 and 100, the same points, 100,000 steps
T3       10 seeds of width 10,000, the same points, 100,000 steps (projected)
T4       10 seeds of 4 hidden layers of 2,048, the same points, 200 steps (projected)
general  10 seeds of 2 hidden layers of 256, an activation that `train` knows nothing of

Networks are of ReLUs, with biases, in float32, trained by gradient descent on half the mean square error. Beside ours
run the loop that most people write (a module for each seed, ``loss.backward()``, `torch.optim.SGD`), `torch.func.vmap`
over ``stack_module_state``, batched matrix products under autograd by hand, and, where JAX is installed, a `lax.scan`
over the steps under `jit`, with the seeds by `vmap` or by `lax.map`.

Each row runs in a process of its own, on two threads: forty steps, or as many as make half a second, five times, and
three times where they last longer than five seconds. The table has the median and the range of the milliseconds a step
takes for all seeds, and what that makes for all steps. T4 shows the rate of its hidden layers' products, too, as a part
of the rate that a product of two square matrices of 2,048 has in the same process.
"""

import importlib.util
import math
import multiprocessing
import statistics
import sys
import time
from functools import partial

import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from ntk_helpers import MLP, train

SEEDS, POINTS, LEARNING_RATE, B_STD = 10, 64, 0.1, 0.1


def points():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(POINTS, 2, generator=generator)
    return x, x[:, :1] * x[:, 1:]


def softsign(z):
    """An activation of the user's own."""
    return z / (1 + z.abs())


def networks(widths, depth, activation, **options):
    return [
        MLP(2, width, depth, activation=activation, b_std=B_STD, dtype=torch.float32, **options) for width in widths
    ]


def ours(widths, depth, activation):
    x, y = points()
    ensembles = networks(widths, depth, activation, seeds=range(SEEDS))

    def run(steps):
        for ensemble in ensembles:
            train(ensemble, x, y, learning_rate=LEARNING_RATE, steps=steps)

    return run


def by_hand(widths, depth, activation):
    """The ensemble's own forward pass, autograd, and an update in place."""
    x, y = points()
    ensembles = networks(widths, depth, activation, seeds=range(SEEDS))

    def run(steps):
        for ensemble in ensembles:
            params = list(ensemble.parameters())
            for _ in range(steps):
                loss = (ensemble(x) - y).square().mean((1, 2)).sum() / 2
                gradients = torch.autograd.grad(loss, params)
                with torch.no_grad():
                    for p, gradient in zip(params, gradients, strict=True):
                        p.sub_(gradient, alpha=LEARNING_RATE)

    return run


def loop(widths, depth, activation):
    x, y = points()
    singles = [net for seed in range(SEEDS) for net in networks(widths, depth, activation, seed=seed)]

    def run(steps):
        for net in singles:
            optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)
            for _ in range(steps):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(net(x), y) / 2
                loss.backward()
                optimizer.step()

    return run


def stacked(widths, depth, activation):
    x, y = points()
    by_width = [[networks([width], depth, activation, seed=seed)[0] for seed in range(SEEDS)] for width in widths]

    def run(steps):
        for singles in by_width:
            net, (params, _) = singles[0], stack_module_state(singles)
            params = {name: p.detach() for name, p in params.items()}

            def loss(params, net=net):
                return (functional_call(net, params, (x,)) - y).square().mean() / 2

            gradients_of = vmap(grad(loss))
            for _ in range(steps):
                gradients = gradients_of(params)
                for name, p in params.items():
                    p.sub_(gradients[name], alpha=LEARNING_RATE)

    return run


def jax(widths, depth, activation, over_seeds):
    import jax
    import jax.numpy as jnp

    phi = {"relu": jax.nn.relu, softsign: lambda z: z / (1 + abs(z))}[activation]
    x, y = (jnp.asarray(t.numpy()) for t in points())
    starts = []
    for ensemble in networks(widths, depth, activation, seeds=range(SEEDS)):
        pairs = zip(ensemble.weights, ensemble.biases, strict=True)
        starts.append([(jnp.asarray(w.detach().numpy()), jnp.asarray(b.detach().numpy())) for w, b in pairs])

    def loss(params):
        h = x
        for layer, (w, b) in enumerate(params):
            h = phi(h) if layer else h
            h = math.sqrt(2 / w.shape[1]) * h @ w.T + B_STD * b
        return ((h - y) ** 2).mean() / 2

    def descend(params, steps):
        def step(params, _):
            moved = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, jax.grad(loss)(params))
            return moved, None

        return jax.lax.scan(step, params, length=steps)[0]

    def all_seeds(params, steps):
        if over_seeds == "vmap":
            return jax.vmap(partial(descend, steps=steps))(params)
        return jax.lax.map(partial(descend, steps=steps), params)

    compiled = jax.jit(all_seeds, static_argnames="steps")

    def run(steps):
        for params in starts:
            jax.block_until_ready(compiled(params, steps))

    return run


METHODS = {"ours": ours, "autograd by hand": by_hand, "loop": loop, "vmap": stacked}
if importlib.util.find_spec("jax"):
    METHODS |= {"jax vmap": partial(jax, over_seeds="vmap"), "jax map": partial(jax, over_seeds="map")}
WORKLOADS = {  # widths, depth, activation, steps
    "T1": ([1024], 1, "relu", 10_000),
    "T2": ([2, 4, 6, 8, 10, 100], 1, "relu", 100_000),
    "T3": ([10_000], 1, "relu", 100_000),
    "T4": ([2048], 4, "relu", 200),
    "general": ([256], 2, softsign, 10_000),
}


def seconds(run, *arguments):
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start


def products_rate():
    """Floating-point operations a second of a large product."""
    a, b, out = (torch.randn(2048, 2048) for _ in range(3))
    return 2 * 2048**3 / statistics.median(seconds(partial(torch.mm, a, b, out=out)) for _ in range(20))


def measure(workload, method, answer):
    torch.set_num_threads(2)
    widths, depth, activation, _ = WORKLOADS[workload]
    run, steps = METHODS[method](widths, depth, activation), 40
    run(2)
    while (first := seconds(run, steps)) < 0.5:
        steps *= 2
    times = [seconds(run, steps) / steps for _ in range(5 if first < 5 else 3)]
    flops = SEEDS * sum(6 * POINTS * width**2 * (depth - 1) for width in widths)
    rate = flops / statistics.median(times) / products_rate() if workload == "T4" else None
    answer.put((statistics.median(times), min(times), max(times), rate))


def main():
    context = multiprocessing.get_context("spawn")
    print(f"{'workload':<10}{'method':<18}{'ms a step':>10}{'from':>10}{'to':>10}{'all steps, s':>14}")
    for workload in sys.argv[1:] or WORKLOADS:
        for method in METHODS:
            answer = context.SimpleQueue()
            process = context.Process(target=measure, args=(workload, method, answer))
            process.start()
            process.join()
            if process.exitcode:
                print(f"{workload:<10}{method:<18}{'killed':>10}", flush=True)
                continue
            median, low, high, rate = answer.get()
            text = (
                "".join(f"{1000 * t:>10.3f}" for t in (median, low, high)) + f"{median * WORKLOADS[workload][3]:>14.1f}"
            )
            text += f"   {rate:.2f} of the rate of a product" if rate else ""
            print(f"{workload:<10}{method:<18}{text}", flush=True)


if __name__ == "__main__":
    main()
