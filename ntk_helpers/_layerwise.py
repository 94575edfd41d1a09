r"""The tangent kernel layer by layer, from Gram products of inputs and sensitivities, without the network's Jacobian.

A layer :math:`z_t = W h_t + b` adds to the gradient of an output :math:`\sum_t s_t h_t^\top` for W and
:math:`\sum_t s_t` for b. The sums go over the layer's locations t (the one row of a vector, the pixels of an image, the
tokens of a text), and the sensitivity :math:`s_t` is the derivative of the output by :math:`z_t`. Inner products of
such gradients factorise,

.. math:: \Theta_W = \sum_{t, u} \langle h_t, h'_u \rangle \langle s_t, s'_u \rangle, \qquad
          \Theta_b = \sum_{t, u} \langle s_t, s'_u \rangle,

so that a forward pass, and a backward pass for each output, give the kernel ("structured derivatives" in Novak et al.
2022).

The uses of parameters are found where they happen, in the calls of `torch.nn.functional.linear` and the like while the
model runs on one sample; how its modules are called and nested plays no part. A parameter with one such use, and no
other, has a Gram product; any other is left to the caller, with the reason.
"""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from numbers import Integral, Real
from operator import mul, truediv

import torch
import torch.nn.functional as F
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.func import jacrev, vjp, vmap
from torch.overrides import TorchFunctionMode

from ntk_helpers._functional import call
from ntk_helpers._gram import gradient_gram, gram, output_pairs, strips, summed


class _Layer:
    """One kind of layer; its `arguments` are those of the function in the order of the call."""

    def applies(self, given):
        """Whether a call with these arguments is the layer's formula."""
        return True

    def saved(self, function, given):
        """What the gradients of weights need of the input."""
        return given["input"].clone()  # the model may write to it later


class _Linear(_Layer):
    arguments = ("input", "weight", "bias")

    def applies(self, given):
        weight, bias = given["weight"], given.get("bias")
        return weight.ndim == 2 and (bias is None or bias.shape == weight.shape[:1])

    def locations(self, site, x, s):
        return x.reshape(len(x), 1, -1, x.shape[-1]), s.reshape(*s.shape[:2], 1, -1, s.shape[-1])


class _Convolution(_Layer):
    arguments = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")

    def locations(self, site, x, s):
        """A convolution is a linear layer at every place of the image, on the patch it sees."""
        kernel, groups, axes = site.weight_shape[2:], site.settings.get("groups", 1), len(site.weight_shape) - 2
        stride, dilation = (_per_axis(site.settings.get(name, 1), axes) for name in ("stride", "dilation"))
        x = x.reshape(len(x), -1, *x.shape[-1 - axes :])
        x = F.pad(x, _padding(site.settings.get("padding", 0), kernel, dilation))
        if axes == 1:
            x, kernel, stride, dilation = x.unsqueeze(-2), (1, *kernel), (1, *stride), (1, *dilation)
        patches = F.unfold(x.flatten(0, 1), tuple(kernel), dilation=dilation, stride=stride)
        patches = patches.unflatten(0, x.shape[:2]).unflatten(2, (groups, -1))  # (n, images, G, I, places)
        s = s.reshape(*s.shape[:2], x.shape[1], groups, -1, patches.shape[-1])
        return patches.permute(0, 2, 1, 4, 3).flatten(2, 3), s.permute(0, 1, 3, 2, 5, 4).flatten(3, 4)


class _Normalization(_Layer):
    """Scale and shift after a normalization: of each channel, or of each entry of the last axes."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def applies(self, given):
        return not given.get("training", False)

    def saved(self, function, given):
        return function(**{name: value for name, value in given.items() if name not in ("weight", "bias")})

    def locations(self, site, x, s):
        """Every scale is a 1 x 1 layer of its own: as many groups as scales."""
        scaled = site.settings.get("normalized_shape")
        before, scales = (site.shape[0], site.shape[1]) if scaled is None else (-1, prod(scaled))
        x = x.reshape(len(x), before, scales, -1 if scaled is None else 1)
        s = s.reshape(*s.shape[:2], *x.shape[1:])
        return x.transpose(1, 2).flatten(2).unsqueeze(-1), s.transpose(2, 3).flatten(3).unsqueeze(-1)


class _Embedding(_Layer):
    arguments = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")

    def locations(self, site, x, s):
        """A linear layer on one-hot inputs, of which only the indices are kept."""
        x, s = x.reshape(len(x), 1, -1, 1), s.reshape(*s.shape[:2], 1, -1, s.shape[-1])
        padding = site.settings.get("padding_idx")
        return x, s if padding is None else s * (x != padding % site.weight_shape[0]).unsqueeze(1)


_LAYERS = {
    F.linear: _Linear(),
    torch.conv1d: _Convolution(),
    torch.conv2d: _Convolution(),
    F.layer_norm: _Normalization("input", "normalized_shape", "weight", "bias", "eps"),
    F.group_norm: _Normalization("input", "num_groups", "weight", "bias", "eps"),
    F.batch_norm: _Normalization(
        "input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"
    ),
    F.embedding: _Embedding(),
}
# A number times a parameter is still known, with the number.
_MULTIPLES = {torch.mul: mul, torch.Tensor.mul: mul, torch.div: truediv, torch.Tensor.div: truediv}


@dataclass(frozen=True)
class Site:
    """One use of parameters by a layer."""

    layer: _Layer
    names: dict  # "weight" and "bias", where they are trained, to the names of the parameters
    scales: dict  # the number that multiplied the parameter before its use
    settings: dict  # the call's other arguments, tensors left out
    weight_shape: tuple
    shape: tuple  # of its output, for a batch of one sample
    dtype: torch.dtype

    @property
    def key(self):
        return " ".join(self.names.values())

    def locations(self, features):
        """Inputs (n, G, T, I) and sensitivities (n, C, G, T, O): of G groups, at T locations."""
        return self.layer.locations(self, features[self.key, "input"], features[self.key, "sensitivity"])

    def without(self, names):
        """The same use, of the other parameters."""
        return replace(self, names={role: name for role, name in self.names.items() if name not in names})


@dataclass(frozen=True)
class Probe:
    """A model, and what one sample's way through it showed."""

    model: torch.nn.Module
    sizes: dict  # of the trainable parameters
    sites: list  # the uses that have Gram products
    left: dict  # the other parameters that are used, and why they have none
    output_shape: tuple  # for a batch of one sample
    dtype: torch.dtype
    obstacle: str | None  # to running all samples at once
    hooked: bool  # whether the model hooks into the gradients of what it computes

    @property
    def has_output_axis(self):
        return len(self.output_shape) == 2

    @property
    def outputs(self):
        return self.output_shape[1] if self.has_output_axis else 1

    def run(self, params, rest, sample):
        """Outputs (C,) of one sample."""
        return call(self.model, params | rest, sample.unsqueeze(0).clone()).reshape(-1)

    def jacobians(self, function, at, x, chunk_size=None, has_aux=False):
        """Derivatives of outputs `function(at, sample)` by `at`, for every sample; samples can't meet under `vmap`.

        One output after the other: a second `vmap`, over outputs, would be quicker by up to a third, but PyTorch 2.13
        then differentiates `prelu` wrongly without a word, where there are as many samples as outputs.
        """
        derivatives = jacrev(function, has_aux=has_aux, chunk_size=1)
        return vmap(lambda sample: derivatives(at, sample), chunk_size=chunk_size)(x)


class _Recorder(TorchFunctionMode):
    """Note every use of the parameters by a layer, and what it was used on.

    The parameters noted are cut from the graph: one found in it was used elsewhere too. `shifts` are added to the
    layers' outputs, so that the derivatives by them are the sensitivities.
    """

    def __init__(self, params, shifts=None):
        self.probing, self.shifts = shifts is None, shifts
        self.sites, self.saved, self.hooked = [], {}, False
        self.known = {}  # by identity: the tensor, its version, the name of its parameter and the multiple
        for name, p in params.items():
            self._know(p, name, 1.0)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.hooked |= function is torch.Tensor.register_hook
        if function in (F.embedding, F.embedding_bag):
            given = dict(zip(_Embedding.arguments, args, strict=False)) | kwargs  # both, as far as it matters here
            if given.get("max_norm") is not None or given.get("scale_grad_by_freq"):
                raise ValueError("model: expected an embedding without max_norm and scale_grad_by_freq, got one with")
        if function in _LAYERS:
            layer = _LAYERS[function]
            given = dict(zip(layer.arguments, args, strict=False)) | kwargs
            known = {role: self._find(given.get(role)) for role in ("weight", "bias")}
            known = {role: found for role, found in known.items() if found}
            if known and layer.applies(given) and not (self.probing and _inside_a_transform(given)):
                return self._layer(function, layer, given, known)
        out = function(*args, **kwargs)
        multiple = function in _MULTIPLES and len(args) == 2 and not kwargs and isinstance(args[1], Real)
        if multiple and (found := self._find(args[0])):
            name, scale = found
            self._know(out, name, _MULTIPLES[function](scale, float(args[1])))
        return out

    def _know(self, tensor, name, scale):
        self.known[id(tensor)] = tensor, tensor._version if self.probing else None, name, scale

    def _find(self, tensor):
        """Name and scale of the parameter of which the tensor is a multiple; None once it was written to or cut off."""
        if id(tensor) not in self.known:
            return None
        _, version, name, scale = self.known[id(tensor)]
        changed = self.probing and (tensor._version != version or not tensor.requires_grad)
        return None if changed else (name, scale)

    def _layer(self, function, layer, given, known):
        given |= {role: given[role].detach() for role in known}
        out = function(**given)
        site = Site(
            layer,
            {role: name for role, (name, _) in known.items()},
            {role: scale for role, (_, scale) in known.items()},
            {name: value for name, value in given.items() if not isinstance(value, torch.Tensor)},
            () if given.get("weight") is None else tuple(given["weight"].shape),
            tuple(out.shape),
            out.dtype,
        )
        self.sites.append(site)
        if self.probing:  # the model may ask whether there is a gradient
            return out + torch.zeros((), dtype=out.dtype, device=out.device, requires_grad=True)
        self.saved[site.key] = layer.saved(function, given)
        return out.add_(self.shifts[site.key])


def probe(model, params, rest, sample):
    """Run the model on a batch of one sample, to find which parameters have Gram products.

    Parameters
    ----------
    model : torch.nn.Module
    params, rest : dict of str to Tensor
        The trainable parameters; all others, and the buffers.
    sample : Tensor (1, ...)

    Returns
    -------
    Probe

    Raises
    ------
    TypeError, ValueError
        For a model whose output is not a real tensor (1, C) or (1,), that draws random numbers or changes from call to
        call, that uses its parameters by another reference than its modules' or rescales its embeddings.
    """
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
    with _no_random_numbers(sample.device), torch.enable_grad(), _Recorder(leaves) as recorder:
        out = call(model, leaves | rest, sample.clone())
    _check_output(out)
    elsewhere = _graph_leaves(out)
    for name, p in model.named_parameters():
        if id(p) in elsewhere:
            raise ValueError(
                f"model: expected its parameters to be used as attributes of modules, got {name} otherwise"
            )
    used = [name for site in recorder.sites for name in site.names.values()]
    left = {}
    for name, p in leaves.items():
        if used.count(name) > 1:
            left[name] = f"used by {used.count(name)} layers, or calls of one"
        elif id(p) in elsewhere and name in used:
            left[name] = "used by a layer, and elsewhere too"
        elif id(p) in elsewhere:
            owner = type(model.get_submodule(name.rpartition(".")[0])).__name__
            left[name] = f"{owner} uses it in a way that has no Gram product here"
    obstacle, again = _run_by_vmap(model, leaves, rest, sample)
    if (again - out.detach()).abs().max() > out.abs().max() * torch.finfo(out.dtype).eps ** 0.5:
        raise ValueError("model: expected the same output at every call, got another at the second; call model.eval()")
    hooked = recorder.hooked or any(m._backward_hooks or m._backward_pre_hooks for m in model.modules())
    if hooked:
        obstacle = "the model hooks into gradients"
    if obstacle is not None:  # then the way may also depend on the sample
        left = dict.fromkeys(params, f"samples one at a time, as {obstacle}")
    sites = [site.without(left) for site in recorder.sites]
    sizes = {name: p.numel() for name, p in params.items()}
    found = [site for site in sites if site.names]
    return Probe(model, sizes, found, left, tuple(out.shape), out.dtype, obstacle, hooked)


def _inside_a_transform(given):
    """Whether the model itself differentiates or maps here: weights then act not through the layer's output alone."""
    return any(isinstance(value, torch.Tensor) and is_functorch_wrapped_tensor(value) for value in given.values())


def _check_output(out):
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"model: expected a tensor as output, got {type(out).__name__}")
    if not out.is_floating_point():
        raise TypeError(f"model: expected a floating-point output, got {out.dtype}")
    if out.ndim not in (1, 2) or out.shape[0] != 1 or out.numel() == 0:
        raise ValueError(f"model: expected output (n, C) or (n,), got {tuple(out.shape)} for n = 1")


def _run_by_vmap(model, leaves, rest, sample):
    """The obstacle to running the model by vmap and back to its first parameter, or None; the output of one sample."""
    params, first = {name: p.detach() for name, p in leaves.items()}, next(iter(leaves))

    def outputs(x):
        def by_first(p):
            return call(model, params | rest | {first: p}, x.unsqueeze(0).clone())

        value, pull_back = vjp(by_first, params[first])
        return value, pull_back(torch.ones_like(value))

    try:
        return None, vmap(outputs)(sample)[0].squeeze(0)
    # Alone, the model ran: it writes in place, decides by the data, lacks a rule of vmap's...
    except Exception as error:
        with torch.enable_grad():
            return f"vmap can't run the model: {error}", call(model, leaves | rest, sample.clone()).detach()


def features(probe, params, rest, x):
    """Inputs (n, ...) and sensitivities (n, C, ...) of the layers: a dict by (`Site.key`, "input" or "sensitivity")."""
    known = {name: params[name] for site in probe.sites for name in site.names.values()}
    shifts = {site.key: torch.zeros(site.shape, dtype=site.dtype, device=x.device) for site in probe.sites}

    def outputs(shifts, sample):
        with _Recorder(known, shifts) as recorder:
            out = probe.run(params, rest, sample)
        return out, recorder.saved

    sensitivities, inputs = probe.jacobians(outputs, shifts, x, has_aux=True)
    named = {"input": inputs, "sensitivity": sensitivities}
    return {(key, kind): value for kind, values in named.items() for key, value in values.items()}


def blocks(site, features1, features2, output, per_layer):
    """The kernel of the parameters at one site, strip by strip: (name, rows, columns, block), laid out as `_gram` says.

    Either the Gram matrices of inputs and of sensitivities are formed over all pairs of locations, or the gradients of
    the layer's weights themselves: whichever takes fewer multiplications.
    """
    same = features2 is features1
    a1, s1 = site.locations(features1)
    a2, s2 = (a1, s1) if same else site.locations(features2)
    if _fewer_by_locations(site, a1, s1, s2, output):
        numbers = s1.shape[2] * s1.shape[3] * s2.shape[3] * output_pairs(s1.shape[1], output)
        for rows, columns in strips(len(s1), len(s2), numbers, symmetric=same):
            pairs = gram(s1[rows], s2[columns], output)
            factors = {"weight": site.scales["weight"] ** 2 * _input_gram(a1[rows], a2[columns], pairs.dtype)}
            if "bias" in site.names:
                factors["bias"] = site.scales["bias"] ** 2
            if not per_layer:  # one pass over the pairs instead of two
                factors = {"weight": sum(factors.values())}
            for role, factor in factors.items():
                yield site.names[role], rows, columns, summed(pairs * factor)
        return
    for role, name in site.names.items():
        g1 = _gradients(site, role, a1, s1)
        g2 = g1 if same else _gradients(site, role, a2, s2)
        for rows, columns, block in gradient_gram(g1, g2, output):
            yield name, rows, columns, block


def _input_gram(a1, a2, dtype):
    """Inner products of inputs (n, G, T, I) in the layout of `gram`; of one-hot inputs given by their indices too."""
    if a1.is_floating_point():
        return gram(a1.unsqueeze(1), a2.unsqueeze(1), "trace")
    return (a1.reshape(1, 1, *a1.shape[::2], 1, 1, 1, 1) == a2.reshape(1, 1, 1, 1, 1, *a2.shape[::2], 1)).to(dtype)


def _gradients(site, role, a, s):
    """Gradients of the outputs of every sample by the weight or the bias: (n, C, entries)."""
    if role == "bias":
        gradients = s.sum(3)
    elif a.is_floating_point():
        gradients = torch.einsum("ngti,ncgto->ncgoi", a, s)
    else:
        rows = a.unsqueeze(1).expand(*s.shape)
        gradients = s.new_zeros(*s.shape[:3], *site.weight_shape).scatter_add(3, rows, s)
    return site.scales[role] * gradients.flatten(2)


def _fewer_by_locations(site, a1, s1, s2, output):
    if "weight" not in site.names:
        return False
    (n1, outputs, groups, t, o), (n2, _, _, u, _) = s1.shape, s2.shape
    products = outputs**2 if output == "full" else outputs
    inputs = prod(site.weight_shape) // (groups * o)
    by_locations = n1 * n2 * groups * t * u * (a1.shape[-1] + products * o)
    by_gradients = groups * o * inputs * (outputs * (n1 * t + n2 * u) + n1 * n2 * products)
    return by_locations < by_gradients


@contextmanager
def _no_random_numbers(device):
    """Raise ValueError if any were drawn inside, from the global generators; leave those as they were."""
    cuda = [device] if device.type == "cuda" else []

    def states():
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, cuda)]

    with torch.random.fork_rng(cuda):
        before = states()
        yield
        after = states()
    if not all(map(torch.equal, before, after)):
        raise ValueError("model: expected no random numbers to be drawn, but it drew some; call model.eval()")


def _graph_leaves(out):
    """Identities of the tensors that the graph of `out` ends in."""
    if out.grad_fn is None:
        return {id(out)}
    seen, stack = set(), [out.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack.extend(following for following, _ in node.next_functions)
    return {id(node.variable) for node in seen if hasattr(node, "variable")}


def _per_axis(value, axes):
    values = (value,) if isinstance(value, Integral) else tuple(value)
    return values * axes if len(values) == 1 else values


def _padding(padding, kernel, dilation):
    """What F.pad takes for the padding of a convolution: before and after each axis, the last axis first."""
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        pairs = [(t // 2, t - t // 2) for t in total]
    else:
        pairs = [(p, p) for p in _per_axis(padding, len(kernel))]
    return [side for pair in reversed(pairs) for side in pair]
