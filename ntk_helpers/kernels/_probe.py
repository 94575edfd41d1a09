"""What one sample's way through a model shows: which parameters have Gram products, and what stands in the way.

The uses of parameters are found where they happen, in the calls of `torch.nn.functional.linear` and the like while the
model runs on one sample; how its modules are called and nested plays no part. A parameter with one such use, and no
other, has a Gram product; any other is left to the caller, with the reason.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from operator import mul, truediv

import torch
import torch.nn.functional as F
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.func import jacrev, vjp, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from ntk_helpers._utils.checks import Arguments, require_trainable
from ntk_helpers._utils.functional import call
from ntk_helpers.kernels._layers import EMBEDDING, LAYERS, Site

# A number times a parameter is still known, with the number.
_MULTIPLES = {torch.mul: mul, torch.Tensor.mul: mul, torch.div: truediv, torch.Tensor.div: truediv}


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
            given = dict(zip(EMBEDDING.arguments, args, strict=False)) | kwargs  # both, as far as it matters here
            if given.get("max_norm") is not None or given.get("scale_grad_by_freq"):
                raise ValueError("model: expected an embedding without max_norm and scale_grad_by_freq, got one with")
        if function in LAYERS:
            layer = LAYERS[function]
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


def check_model(model):
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
