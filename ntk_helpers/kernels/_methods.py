"""The ways to the tangent kernel of some of a network's parameters, tile by tile: each gives the same blocks."""

import logging
from collections.abc import Callable
from functools import partial
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch.func import vmap

from ntk_helpers._utils import functional
from ntk_helpers._utils.functional import split, state_of, states
from ntk_helpers.kernels._gram import from_full, gradient_gram
from ntk_helpers.kernels._layers import blocks as layer_blocks
from ntk_helpers.kernels._probe import features as layer_features

logger = logging.getLogger("ntk_helpers.empirical")

# Measured: with so few points and so many numbers, vector products are quicker than contracting Jacobians; with so few
# parameters, all members of an ensemble at once are quicker than one after the other.
FEW_POINTS, LARGE_JACOBIAN, SMALL_NETWORK = 8, 10**7, 10**6

# Numbers that depend on the output, about, at once. Every further chunk of outputs is one more forward pass; in the
# full kernel, which pairs them, one more way through all of them.
HELD, HELD_IN_FULL = 2**24, 2**27


class _Part(NamedTuple):
    """One method, for some of the parameters."""

    features: Callable  # (params, rest, x) to all that the method keeps of a chunk of points: a dict of tensors
    blocks: Callable  # (params, rest, features, features) to tuples (name, rows, columns, block), laid out by `_gram`
    batched: bool  # whether features are computed for all members of an ensemble at once
    numbers: int  # of a sample's features, for each output; zero if they depend on none


def parts(probe, method, output, per_layer, x1, x2):
    """The methods that cover all parameters between them: functions of the probe, whole or of some outputs."""
    by_jacobian = partial(_jacobian_part, output=output)
    by_products = partial(_vector_product_part, output=output, per_layer=per_layer)
    if method == "jacobian":
        return [partial(by_jacobian, names=list(probe.sizes))]
    if method == "vector_product":
        return [partial(by_products, names=list(probe.sizes))]
    if method == "layerwise" and probe.left:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in probe.left.items())
        raise ValueError(f'method: expected parameters that have Gram products for "layerwise", got {reasons}')
    parts = [partial(_layerwise_part, output=output, per_layer=per_layer)] if probe.sites else []
    if left := list(probe.left):
        size = sum(probe.sizes[name] for name in left)
        together = probe.outputs if output == "full" else 1  # of the others, one after the other will do
        worth_it = min(len(x1), len(x2)) <= FEW_POINTS and (len(x1) + len(x2)) * together * size >= LARGE_JACOBIAN
        by_what = "vector products" if worth_it and _has_products(probe, left, x1[:1]) else "its Jacobian"
        parts.append(partial(by_products if by_what == "vector products" else by_jacobian, names=left))
        for name, reason in probe.left.items():
            logger.info("%s by %s: %s", name, by_what, reason)
    return parts


def chunks_of_outputs(part, probe, output, samples):
    """Pairs of slices of the outputs, for a part that treats so many samples at once: only the full kernel mixes them.

    All pairs together cover what the kernel has.
    """
    numbers, held = samples * part(probe).numbers, HELD_IN_FULL if output == "full" else HELD
    at_once = max(1, held // numbers) if numbers else probe.outputs
    chunks = [slice(i, min(i + at_once, probe.outputs)) for i in range(0, probe.outputs, at_once)]
    return list(product(chunks, chunks)) if output == "full" else [(chunk, chunk) for chunk in chunks]


def _layerwise_part(probe, *, output, per_layer):
    def blocks(params, rest, f1, f2):
        for site in probe.sites:
            yield from layer_blocks(site, f1, f2, output, per_layer)

    small = sum(probe.sizes.values()) <= SMALL_NETWORK
    numbers = sum(prod(site.shape) for site in probe.sites)
    return _Part(partial(layer_features, probe), blocks, batched=small, numbers=numbers)


def _jacobian_part(probe, *, names, output):
    def features(params, rest, x):
        return jacobian_blocks(probe, *split(params, rest, names), x)

    def blocks(params, rest, j1, j2):
        for name in names:
            for rows, columns, block in gradient_gram(j1[name], j2[name], output):
                yield name, rows, columns, block

    return _Part(features, blocks, batched=False, numbers=sum(probe.sizes[name] for name in names))


def _vector_product_part(probe, *, names, output, per_layer):
    groups = [[name] for name in names] if per_layer else [names]

    def features(params, rest, x):
        return {"x": x}

    def blocks(params, rest, f1, f2):
        """Push forward to all points of one side the gradient of each output at each point of the other."""
        x1, x2 = f1["x"], f2["x"]
        flipped = len(x1) < len(x2)
        points, others = (x1, x2) if flipped else (x2, x1)
        chosen, remaining = split(params, rest, names)
        cpu = {"generator": torch.Generator().manual_seed(0), "dtype": torch.float64, "device": "cpu"}
        v = torch.randn(len(others), probe.outputs, **cpu).to(x1.device, probe.dtype)
        pulled, push_forward = pull_and_push(probe, chosen, remaining, others, v)
        columns = []  # a tensor (groups, others, C) for each point and output
        for point in points:
            pull_back = _pull_back(probe, chosen, remaining, point.unsqueeze(0))
            for direction in torch.eye(probe.outputs, dtype=probe.dtype, device=x1.device):
                gradient = pull_back(direction.unsqueeze(0))
                columns.append(torch.stack([push_forward(_only(gradient, group)) for group in groups]))
                check_products(v, pulled, gradient, columns[-1].sum(0))
        stacked = torch.stack(columns, -1).unflatten(-1, (len(points), -1))  # (groups, others, C, points, C)
        for group, block in zip(groups, stacked, strict=True):
            block = block.permute(2, 3, 0, 1) if flipped else block
            yield group[0], slice(0, len(x1)), slice(0, len(x2)), from_full(block, output)

    return _Part(features, blocks, batched=False, numbers=0)


def _only(gradient, names):
    """The gradient by the parameters `names`, zero by the others."""
    return {name: value if name in names else torch.zeros_like(value) for name, value in gradient.items()}


def blocks(model, sides, x1, x2, chunk):
    """Blocks (s, name, rows, columns, block) that cover all members' kernels, or where x2 is None their triangles.

    The two `sides` are the part for the rows and that for the columns: the same one, or of other outputs.
    """
    every = states(model)
    everyone = range(len(every))
    for members in [everyone] if sides[0].batched else [[s] for s in everyone]:
        features = [partial(_features, side, [every[s] for s in members], state_of(model)) for side in sides]
        for top, left, f1, f2 in _tiles(features, x1, x2, chunk, mixed=sides[0] is not sides[1]):
            for s, of_rows, of_columns in zip(members, f1, f2, strict=True):
                for name, rows, columns, block in sides[0].blocks(*every[s], of_rows, of_columns):
                    yield s, name, _shifted(rows, top), _shifted(columns, left), block


def _tiles(features, x1, x2, chunk, mixed):
    """Corners and features (top, left, f1, f2) that cover the kernel, or its upper triangle where x2 is None."""
    of_rows, of_columns = features
    others, symmetric = (x1, True) if x2 is None else (x2, False)
    for top in range(0, len(x1), chunk):
        f1 = of_rows(x1[top : top + chunk])
        for left in range(top if symmetric else 0, len(others), chunk):
            same = symmetric and left == top and not mixed
            yield top, left, f1, f1 if same else of_columns(others[left : left + chunk])


def _shifted(rows, by):
    return slice(rows.start + by, rows.stop + by)


def _features(part, own, stacked, x):
    """The features of members by their `own` states; `stacked` is the state of the ensemble, with all of them."""
    alone = part.features(*own[0], x)
    if len(own) == 1:
        return [alone]
    # Within a vmap over members, that over samples meets PyTorch's rules for two, of which not all are right (`prelu`).
    try:
        batched = vmap(part.features, in_dims=(0, 0, None))(*stacked, x)
        if all((batched[key][0] - alone[key]).abs().max() <= 1e-3 * alone[key].abs().max() for key in alone):
            return [{key: value[s] for key, value in batched.items()} for s in range(len(own))]
    except RuntimeError as error:
        logger.info("vmap over the members: %s", error)
    logger.info("members one at a time, as vmap over them fails or is wrong")
    return [alone, *(part.features(*state, x) for state in own[1:])]


def _outputs(probe, params, rest, x):
    """Outputs (n, C), each sample by itself: what one holds can't depend on the others in the batch."""
    if probe.obstacle is not None:
        return torch.stack([probe.run(params, rest, sample) for sample in x])
    return vmap(lambda sample: probe.run(params, rest, sample))(x)


def jacobian_blocks(probe, params, rest, x, chunk_size=None):
    """The Jacobian (n, C, p) by each of the parameters `params`."""
    if probe.obstacle is not None:
        return _jacobian_blocks_one_by_one(probe, params, rest, x)
    blocks = probe.jacobians(lambda p, sample: probe.run(p, rest, sample), params, x, chunk_size)
    return {name: block.reshape(*block.shape[:2], -1) for name, block in blocks.items()}


def _jacobian_blocks_one_by_one(probe, params, rest, x):
    """One sample after the other, one output after the other: slow, but all that can be trained can do this."""
    params = {name: p.detach().requires_grad_() for name, p in params.items()}
    with torch.enable_grad():
        rows = [[_gradients(value, params) for value in probe.run(params, rest, sample)] for sample in x]
    return {
        name: torch.stack([torch.stack([gradient[name].flatten() for gradient in row]) for row in rows])
        for name in params
    }


def _gradients(value, params, v=None, **options):
    """The gradient of a value, or along `v`, by all parameters, zero by those that have no part in it."""
    if not value.requires_grad:
        return {name: torch.zeros_like(p) for name, p in params.items()}
    options |= {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    return dict(zip(params, torch.autograd.grad(value, list(params.values()), v, **options), strict=True))


def _pull_back(probe, params, rest, x):
    """The function v -> J^T v from directions (n, C) to the parameters `params`."""
    params = {name: p.detach().requires_grad_() for name, p in params.items()}
    with torch.enable_grad():
        out = _outputs(probe, params, rest, x)
    return lambda v, **options: _gradients(out, params, v, **options)


def pull_and_push(probe, params, rest, x, v):
    """J^T v, and the function u -> J u, from the parameters `params` back to (n, C): its derivative by v.

    The forward mode would be as good if PyTorch's did not differ from what trains a network: it follows parameters
    under `no_grad`, and the padding index of an embedding. The transforms of `torch.func` would be as good if models
    that differentiate by `torch.autograd.grad` could run under them.
    """
    if probe.hooked:
        raise ValueError("model: expected no hooks on gradients for vector products, got some")
    params = {name: p.detach().requires_grad_() for name, p in params.items()}
    with torch.enable_grad():
        pulled, push = functional.pull_and_push([_outputs(probe, params, rest, x)], list(params.values()), [v])
    return dict(zip(params, pulled, strict=True)), lambda u: push([u[name] for name in params])[0]


def check_products(v, pulled, u, pushed):
    """Raise unless <v, J u> is <J^T v, u>: not all second derivatives in PyTorch agree with the first.

    What is not finite is the caller's to report.
    """
    left, right = (v * pushed).sum(), sum((pulled[name] * u[name]).sum() for name in u)
    if not (left.isfinite() and right.isfinite()):
        return
    size = v.norm() * pushed.norm() + (_squares(pulled) * _squares(u)).sqrt()
    eps = max(torch.finfo(tensor.dtype).eps for tensor in (v, *u.values()))
    rounding = 100 * eps * v.norm() * _squares(u).sqrt()  # of gradients that are zero
    if not (left - right).abs() <= eps**0.5 * size + rounding:
        raise ValueError(
            f"model: expected vector products with <v, J u> = <J^T v, u>, got {left:.6g} and {right:.6g}, since "
            'PyTorch takes a second derivative wrongly; empirical_ntk(method="jacobian") does without'
        )


def _squares(gradient):
    return sum(g.square().sum() for g in gradient.values())


def _has_products(probe, names, x):
    """Whether vector products with these parameters work on these points; why they don't goes to the logger."""
    params, rest = split(*states(probe.model)[0], names)
    try:
        v = torch.ones(len(x), probe.outputs, dtype=probe.dtype, device=x.device)
        pulled, push_forward = pull_and_push(probe, params, rest, x, v)
        check_products(v, pulled, pulled, push_forward(pulled))
    except Exception as error:  # mostly an operation whose derivative has none
        logger.info("no vector products: %s", error)
        return False
    return True
