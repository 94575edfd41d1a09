"""Jacobians, neural tangent kernels and linearizations of finite networks: any `torch.nn.Module`.

A model maps ``(n, ...)`` to ``(n, C)`` or ``(n,)``, one sample independent of the others. An ensemble is a model with
an integer attribute ``ensemble_size``, all of whose parameters and buffers have a leading axis of that size, and which
computes member s when called with slice s of them; it maps ``(n, ...)`` to ``(S, n, C)``.
"""

import copy
import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.func import jvp, vjp, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ntk_helpers import _layerwise
from ntk_helpers._checks import Arguments, require_integer, require_trainable
from ntk_helpers._functional import call, ensemble_size, leaves_the_model
from ntk_helpers._gram import arranged, from_full, gradient_gram, mirrored
from ntk_helpers._precision import full_precision

logger = logging.getLogger(__name__)

# Measured: with so few points and so many numbers, vector products are quicker than contracting Jacobians; with so few
# parameters, all members of an ensemble at once are quicker than one after the other.
FEW_POINTS, LARGE_JACOBIAN, SMALL_NETWORK = 8, 10**7, 10**6


@leaves_the_model
@full_precision()
def jacobian(model, x, *, chunk_size=None):
    """Jacobian of the outputs with respect to all trainable parameters, flattened in the order of `parameters()`.

    Parameters
    ----------
    model : torch.nn.Module
    x : Tensor (n, ...)
        Inputs, of the dtype and device of the parameters; integers for a model with a `torch.nn.Embedding`.
    chunk_size : int, optional
        Samples differentiated at once; None for all. Bounds the memory of the intermediate arrays.

    Returns
    -------
    Tensor (n, C, P)
        (n, P) for a model whose output has no output axis; with a leading axis S for an ensemble.

    Raises
    ------
    TypeError, ValueError
        For inputs that are not finite or do not match the parameters; a model without trainable parameters, or with
        hooks on their gradients; one whose output has the wrong shape; and one whose kernel would be meaningless, since
        it draws random numbers, changes from call to call, or has Dropout or BatchNorm in training mode.
    """
    _check_model(model).inputs("x", x, model)
    _check_chunk_size(chunk_size)
    x = x.detach()
    probe = _probe(model, x)

    def flat(params, rest, _):
        j = torch.cat(list(_jacobian_blocks(probe, params, rest, x, chunk_size).values()), dim=-1)
        return j if probe.has_output_axis else j.squeeze(1)

    return _over_members(model, flat)


@leaves_the_model
@full_precision()
def empirical_ntk(model, x1, x2=None, *, output="full", method="auto", chunk_size=None, per_layer=False):
    r"""Neural tangent kernel of a finite network at its present parameters.

    :math:`\Theta_{ab}(x, x') = \langle \nabla_\theta f_a(x), \nabla_\theta f_b(x') \rangle`, the sum over all trainable
    parameters (Jacot et al. 2018, section 4). All methods give the same kernel, to rounding.

    Parameters
    ----------
    model : torch.nn.Module
    x1 : Tensor (n1, ...)
        Inputs, of the dtype and device of the parameters; integers for a model with a `torch.nn.Embedding`.
    x2 : Tensor (n2, ...), optional
        None means `x1`: computed once, and exactly symmetric.
    output : {"full", "trace", "diagonal"}
        All pairs of outputs; their trace, the *sum* over a = b (the kernel itself where there is one output); or the
        pairs a = b, each by itself.
    method : {"auto", "layerwise", "jacobian", "vector_product"}
        "layerwise" multiplies Gram matrices of layers' inputs and sensitivities ("structured derivatives" in Novak et
        al. 2022), for parameters used once: by a linear layer, a convolution in one or two dimensions, an embedding, or
        as scale or shift of a layer, group or batch norm. "jacobian" contracts Jacobians; "vector_product" pushes
        forward the gradients at the points of the smaller side one by one, in the memory of a few copies of the model.
        "auto" is layerwise, and one of the others for just those parameters that have no Gram product: which, and why,
        it tells the logger "ntk_helpers.empirical" at level INFO.
    chunk_size : int, optional
        Samples of `x1` and of `x2` treated at once; None for all. Bounds the memory, at the price of one more pass
        through the network for every pair of chunks.
    per_layer : bool
        Return the share of each trainable parameter under its name; the shares sum to the kernel.

    Returns
    -------
    Tensor, or dict of str to Tensor
        (n1, n2, C, C) in full, (n1, n2) for the trace, (n1, n2, C) for the diagonal; always (n1, n2) for a model whose
        output has no output axis. With a leading axis S for an ensemble of S networks.

    Raises
    ------
    TypeError, ValueError
        As `jacobian`, naming the argument; also for method "layerwise" where a parameter has no Gram product, and for
        "vector_product" where the model hooks into gradients or PyTorch mistakes a second derivative.
    RuntimeError
        From PyTorch, for method "vector_product", where it lacks a second derivative.
    """
    _require_one_of("output", output, ["diagonal", "full", "trace"])
    _require_one_of("method", method, ["auto", "jacobian", "layerwise", "vector_product"])
    arguments = _check_model(model)
    arguments.inputs("x1", x1, model)
    if x2 is not None:
        arguments.inputs("x2", x2, model)
        if x2.shape[1:] != x1.shape[1:]:
            expected = ", ".join(["n2", *map(str, x1.shape[1:])])
            raise ValueError(f"x2: expected shape ({expected}), got {tuple(x2.shape)}")
    _check_chunk_size(chunk_size)

    x1, x2 = x1.detach(), None if x2 is None else x2.detach()
    probe, size, others = _probe(model, x1), ensemble_size(model), x1 if x2 is None else x2
    n1, n2 = len(x1), len(others)
    pairs = {"full": 2, "diagonal": 1, "trace": 0}[output] * (probe.outputs,)
    names = probe.sizes if per_layer else ["sum"]
    theta = {name: torch.zeros(size or 1, n1, n2, *pairs, dtype=probe.dtype, device=x1.device) for name in names}
    for part in _parts(probe, method, output, per_layer, x1, others):
        for s, name, rows, columns, block in _blocks(model, part, x1, x2, chunk_size or max(n1, n2)):
            theta[name if per_layer else "sum"][s, rows, columns] += arranged(block, output)
    for name, value in theta.items():
        value = mirrored(value, output) if x2 is None else value
        value = value if probe.has_output_axis else value.reshape(value.shape[:3])
        theta[name] = value.squeeze(0) if size is None else value
    return theta if per_layer else theta["sum"]


@leaves_the_model
@full_precision()
def ntk_vector_product(model, x, v):
    r"""The neural tangent kernel on `x`, times a vector, without the kernel.

    :math:`\Theta v = J (J^\top v)`, and :math:`J^\top v` is no larger than the parameters: a forward pass, a backward
    pass, and a backward pass through that.

    Parameters
    ----------
    model : torch.nn.Module
    x : Tensor (n, ...)
    v : Tensor (n, C), or (n,) for a model whose output has no output axis
        With a leading axis S for an ensemble of S networks.

    Returns
    -------
    Tensor
        Of the shape of `v`.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `empirical_ntk` with method "vector_product".
    """
    arguments = _check_model(model)
    arguments.inputs("x", x, model)
    x = x.detach()
    probe, size = _probe(model, x), ensemble_size(model)
    arguments.tensor("v", v, " ".join(map(str, [*([size] if size else []), len(x), *probe.output_shape[1:]])))

    def product(params, rest, s):
        v_s = v if size is None else v[s]
        flat = v_s.reshape(len(x), -1)
        pulled, push_forward = _pull_and_push(probe, params, rest, x, flat)
        pushed = push_forward(pulled)
        _check_products(flat, pulled, pulled, pushed)
        return pushed.reshape(v_s.shape)

    return _over_members(model, product)


def linearize(model):
    r"""First-order Taylor expansion of a model in its parameters, around their present values.

    :math:`f^\mathrm{lin}_\theta(x) = f_{\theta_0}(x) + \nabla_\theta f_{\theta_0}(x) \cdot (\theta - \theta_0)`
    (Lee et al. 2019, section 2.2).

    Returns
    -------
    torch.nn.Module
        With parameters of its own, copies of the model's that start at the same values and can be trained; it is
        linear in them, and its NTK is that of `model` for ever.

    Raises
    ------
    TypeError, ValueError
        As `jacobian`, where the model alone is at fault.

    Notes
    -----
    The derivative is that of PyTorch's forward mode, which unlike training follows parameters under `no_grad`, and the
    padding index of an embedding.
    """
    _check_model(model)
    return _Linearized(model)


class _Linearized(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = copy.deepcopy(model)
        self.origin = nn.Module()
        for name, value in _state(model)[0].items():
            self.origin.register_buffer(name.replace(".", "/"), value.clone())
        self.ensemble_size = ensemble_size(model)

    def forward(self, x):
        origin = {name.replace("/", "."): value for name, value in self.origin.named_buffers()}
        moved = dict(self.model.named_parameters())
        tangent = {name: moved[name] - value for name, value in origin.items()}
        with full_precision():  # the fused attention of the CPU has no forward mode
            value, change = jvp(lambda p: call(self.model, p, x), (origin,), (tangent,))
        return value + change


class _Part(NamedTuple):
    """One method, for some of the parameters."""

    features: Callable  # (params, rest, x) to all that the method keeps of a chunk of points: a dict of tensors
    blocks: Callable  # (params, rest, features, features) to tuples (name, rows, columns, block), laid out by `_gram`
    batched: bool  # whether features are computed for all members of an ensemble at once
    name: str


def _parts(probe, method, output, per_layer, x1, x2):
    """The methods that cover all parameters between them."""
    if method == "jacobian":
        return [_jacobian_part(probe, list(probe.sizes), output)]
    if method == "vector_product":
        return [_vector_product_part(probe, list(probe.sizes), output, per_layer)]
    if method == "layerwise" and probe.left:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in probe.left.items())
        raise ValueError(f'method: expected parameters that have Gram products for "layerwise", got {reasons}')
    parts = [_layerwise_part(probe, output, per_layer)] if probe.sites else []
    if left := list(probe.left):
        size = sum(probe.sizes[name] for name in left)
        worth_it = min(len(x1), len(x2)) <= FEW_POINTS and (len(x1) + len(x2)) * probe.outputs * size >= LARGE_JACOBIAN
        if worth_it and _has_products(probe, left, x1[:1]):
            parts.append(_vector_product_part(probe, left, output, per_layer))
        else:
            parts.append(_jacobian_part(probe, left, output))
        for name, reason in probe.left.items():
            logger.info("%s by %s: %s", name, parts[-1].name, reason)
    return parts


def _layerwise_part(probe, output, per_layer):
    def blocks(params, rest, f1, f2):
        for site in probe.sites:
            yield from _layerwise.blocks(site, f1, f2, output, per_layer)

    small = sum(probe.sizes.values()) <= SMALL_NETWORK
    return _Part(partial(_layerwise.features, probe), blocks, batched=small, name="Gram products")


def _jacobian_part(probe, names, output):
    def features(params, rest, x):
        return _jacobian_blocks(probe, *_split(params, rest, names), x)

    def blocks(params, rest, j1, j2):
        for name in names:
            for rows, columns, block in gradient_gram(j1[name], j2[name], output):
                yield name, rows, columns, block

    return _Part(features, blocks, batched=False, name="its Jacobian")


def _vector_product_part(probe, names, output, per_layer):
    groups = [[name] for name in names] if per_layer else [names]

    def features(params, rest, x):
        return {"x": x}

    def blocks(params, rest, f1, f2):
        """Push forward to all points of one side the gradient of each output at each point of the other."""
        x1, x2 = f1["x"], f2["x"]
        flipped = len(x1) < len(x2)
        points, others = (x1, x2) if flipped else (x2, x1)
        chosen, remaining = _split(params, rest, names)
        v = torch.randn(len(others), probe.outputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        v = v.to(x1.device, probe.dtype)
        pulled, push_forward = _pull_and_push(probe, chosen, remaining, others, v)
        columns = []  # a tensor (groups, others, C) for each point and output
        for point in points:
            pull_back = _pull_back(probe, chosen, remaining, point.unsqueeze(0))
            for direction in torch.eye(probe.outputs, dtype=probe.dtype, device=x1.device):
                gradient = pull_back(direction.unsqueeze(0))
                columns.append(torch.stack([push_forward(_only(gradient, group)) for group in groups]))
                _check_products(v, pulled, gradient, columns[-1].sum(0))
        stacked = torch.stack(columns, -1).unflatten(-1, (len(points), -1))  # (groups, others, C, points, C)
        for group, block in zip(groups, stacked, strict=True):
            block = block.permute(2, 3, 0, 1) if flipped else block
            yield group[0], slice(0, len(x1)), slice(0, len(x2)), from_full(block, output)

    return _Part(features, blocks, batched=False, name="vector products")


def _only(gradient, names):
    """The gradient by the parameters `names`, zero by the others."""
    return {name: value if name in names else torch.zeros_like(value) for name, value in gradient.items()}


def _blocks(model, part, x1, x2, chunk):
    """Blocks (s, name, rows, columns, block) that cover all members' kernels, or where x2 is None their triangles."""
    states = _states(model)
    everyone = range(len(states))
    for members in [everyone] if part.batched else [[s] for s in everyone]:
        features = partial(_features, part, [states[s] for s in members], _state(model))
        for top, left, f1, f2 in _tiles(features, x1, x2, chunk):
            for s, of_rows, of_columns in zip(members, f1, f2, strict=True):
                for name, rows, columns, block in part.blocks(*states[s], of_rows, of_columns):
                    yield s, name, _shifted(rows, top), _shifted(columns, left), block


def _tiles(features, x1, x2, chunk):
    """Corners and features (top, left, f1, f2) that cover the kernel, or its upper triangle where x2 is None."""
    others, symmetric = (x1, True) if x2 is None else (x2, False)
    for top in range(0, len(x1), chunk):
        f1 = features(x1[top : top + chunk])
        for left in range(top if symmetric else 0, len(others), chunk):
            same = symmetric and left == top
            yield top, left, f1, f1 if same else features(others[left : left + chunk])


def _shifted(rows, by):
    return slice(rows.start + by, rows.stop + by)


def _features(part, states, stacked, x):
    """The features of the members of these states; `stacked` is the state of the ensemble, with all of them."""
    alone = part.features(*states[0], x)
    if len(states) == 1:
        return [alone]
    # Within a vmap over members, that over samples meets PyTorch's rules for two, of which not all are right (`prelu`).
    try:
        batched = vmap(part.features, in_dims=(0, 0, None))(*stacked, x)
        if all((batched[key][0] - alone[key]).abs().max() <= 1e-3 * alone[key].abs().max() for key in alone):
            return [{key: value[s] for key, value in batched.items()} for s in range(len(states))]
    except RuntimeError as error:
        logger.info("vmap over the members: %s", error)
    logger.info("members one at a time, as vmap over them fails or is wrong")
    return [alone, *(part.features(*state, x) for state in states[1:])]


def _outputs(probe, params, rest, x):
    """Outputs (n, C), each sample by itself: what one holds can't depend on the others in the batch."""
    if probe.obstacle is not None:
        return torch.stack([probe.run(params, rest, sample) for sample in x])
    return vmap(lambda sample: probe.run(params, rest, sample))(x)


def _jacobian_blocks(probe, params, rest, x, chunk_size=None):
    """The Jacobian (n, C, p) by each of the parameters `params`."""
    if probe.obstacle is not None:
        return _jacobian_blocks_one_by_one(probe, params, rest, x)
    blocks = probe.jacobians(lambda p, sample: probe.run(p, rest, sample), params, x, chunk_size)
    return {name: block.reshape(*block.shape[:2], -1) for name, block in blocks.items()}


def _jacobian_blocks_one_by_one(probe, params, rest, x):
    """One sample after the other, one output after the other: slow, but all that can be trained can do this."""
    params = {name: p.detach().requires_grad_() for name, p in params.items()}

    def gradients(value):
        if not value.requires_grad:
            return [torch.zeros_like(p) for p in params.values()]
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        return torch.autograd.grad(value, list(params.values()), **options)

    with torch.enable_grad():
        rows = [[gradients(value) for value in probe.run(params, rest, sample)] for sample in x]
    return {
        name: torch.stack([torch.stack([gradient[i].flatten() for gradient in row]) for row in rows])
        for i, name in enumerate(params)
    }


def _pull_back(probe, params, rest, x):
    """The function v -> J^T v from directions (n, C) to the parameters `params`."""
    pull_back = vjp(lambda p: _outputs(probe, p, rest, x), params)[1]
    return lambda v: pull_back(v)[0]


def _pull_and_push(probe, params, rest, x, v):
    """J^T v, and the function u -> J u, from the parameters `params` back to (n, C): its derivative by v.

    The forward mode would be as good if PyTorch's did not differ from what trains a network: it follows parameters
    under `no_grad`, and the padding index of an embedding.
    """
    if probe.hooked:
        raise ValueError("model: expected no hooks on gradients for vector products, got some")
    pulled, push_forward = vjp(_pull_back(probe, params, rest, x), v)
    return pulled, lambda u: push_forward(u)[0]


def _check_products(v, pulled, u, pushed):
    """Raise unless <v, J u> is <J^T v, u>: not all second derivatives in PyTorch agree with the first."""
    left, right = (v * pushed).sum(), sum((pulled[name] * u[name]).sum() for name in u)
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
    params, rest = _split(*_states(probe.model)[0], names)
    try:
        v = torch.ones(len(x), probe.outputs, dtype=probe.dtype, device=x.device)
        pulled, push_forward = _pull_and_push(probe, params, rest, x, v)
        _check_products(v, pulled, pulled, push_forward(pulled))
    except Exception as error:  # mostly an operation whose derivative has none
        logger.info("no vector products: %s", error)
        return False
    return True


def _split(params, rest, names):
    """The same state, with only the parameters `names` to differentiate by."""
    others = {name: value for name, value in params.items() if name not in names}
    return {name: params[name] for name in names}, rest | others


def _state(model):
    """The trainable parameters, and the rest: frozen ones and buffers."""
    params = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    return params, frozen | dict(model.named_buffers())


def _states(model):
    """The states of an ensemble's members; the model's own alone, unless it is one."""
    state, size = _state(model), ensemble_size(model)
    if size is None:
        return [state]
    return [tuple({name: value[s] for name, value in part.items()} for part in state) for s in range(size)]


def _over_members(model, function):
    """The function of (params, rest, s) for the model, or stacked over an ensemble's members s."""
    results = [function(*state, s) for s, state in enumerate(_states(model))]
    return results[0] if ensemble_size(model) is None else torch.stack(results)


def _probe(model, x):
    """What the first sample shows about the model."""
    return _layerwise.probe(model, *_states(model)[0], x[:1])


def _check_model(model):
    """Check a model; return the checks of its inputs, which must be of the dtype and device of its parameters."""
    params = require_trainable(model)
    for name, module in model.named_modules():
        batchwise = isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
        if batchwise or (isinstance(module, _DropoutNd) and module.training):
            fault, remedy = ("in training mode", "call model.eval()")
            if not module.training:
                fault, remedy = ("without running statistics", "keep track_running_stats=True")
            raise ValueError(
                f"model: expected no module whose output depends on the batch or on chance, got {name or 'the model'}, "
                f"a {type(module).__name__} {fault}, where the kernel of a pair of points has no meaning; {remedy}"
            )
    for name, p in params.items():
        if p._backward_hooks:
            raise ValueError(f"model: expected parameters without hooks on their gradients, but {name} has one")
    return Arguments(("the parameters", next(iter(params.values()))))


def _check_chunk_size(chunk_size):
    if chunk_size is not None:
        require_integer("chunk_size", chunk_size, at_least=1)


def _require_one_of(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")
