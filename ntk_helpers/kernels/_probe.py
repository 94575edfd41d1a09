"""What one sample's way through a model shows: which parameters have Gram products, and what stands in the way.

The uses of parameters are found where they happen, in the calls of `torch.nn.functional.linear` and the like while the
model runs on one sample; how its modules are called and nested plays no part. A parameter with one such use, and no
other, has a Gram product; any other is left to the caller, with the reason.
"""

import logging
import math
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Real
from operator import mul, truediv

import torch
import torch.nn.functional as F
from torch import nn
from torch._C._functorch import maybe_current_level
from torch.autograd import forward_ad
from torch.func import jacrev, vjp, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ntk_helpers._utils.checks import Arguments, require_trainable
from ntk_helpers._utils.functional import call
from ntk_helpers.kernels._layers import EMBEDDING, LAYERS, Site

logger = logging.getLogger("ntk_helpers.empirical")

SMALL = 10**6  # numbers in a parameter by which two samples' gradients are compared

# A number times a parameter is still known, with the number.
_MULTIPLES = {torch.mul: mul, torch.Tensor.mul: mul, torch.div: truediv, torch.Tensor.div: truediv}


@dataclass(frozen=True)
class Probe:
    """A model, and what one sample's way through it showed."""

    model: torch.nn.Module
    sizes: dict  # of the trainable parameters
    sites: list  # the uses that have Gram products
    left: dict  # the other parameters that are used, and why they have none
    output_shape: tuple  # of one sample
    dtype: torch.dtype
    copies: int  # of a sample in the batch it is run in: two where one alone would be squeezed
    differentiates: bool  # whether the model may differentiate by its inputs
    obstacle: str | None  # to running all samples at once
    hooked: bool  # whether the model hooks into the gradients of what it computes
    chosen: slice = field(default_factory=lambda: slice(None))  # the outputs that are differentiated

    @property
    def has_output_axis(self):
        return len(self.output_shape) > 0

    @property
    def outputs(self):
        return len(range(*self.chosen.indices(math.prod(self.output_shape))))

    def only(self, chosen):
        """The same, of some outputs."""
        return replace(self, chosen=chosen)

    def run(self, params, rest, sample):
        """Outputs (C,) of one sample."""
        alone = self.differentiates and self.obstacle is not None  # transforms of torch.func have leaves of their own
        out = call(self.model, params | rest, _batch([sample] * self.copies, alone))
        return out.reshape(self.copies, -1)[0, self.chosen]

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
        self.level = _level()
        self.eps, self.largest = 0.0, 0.0  # of all dtypes and of all layers' outputs on the way
        self.sites, self.saved, self.hooked = [], {}, False
        self.known = {}  # by identity: the tensor, its version, the name of its parameter and the multiple
        for name, p in params.items():
            self._know(p, name, 1.0)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.hooked |= function is torch.Tensor.register_hook
        if function in _EMBEDDINGS:
            _check_embedding(dict(zip(_EMBEDDINGS[function], args, strict=False)) | kwargs)
        if function in LAYERS:
            layer = LAYERS[function]
            given = dict(zip(layer.arguments, args, strict=False)) | kwargs
            known = {role: self._find(given.get(role)) for role in ("weight", "bias")}
            known = {role: found for role, found in known.items() if found}
            # Where the model itself differentiates or maps, weights act not through the layer's output alone.
            if known and layer.applies(given) and _level() == self.level:
                return self._layer(function, layer, given, known)
        out = function(*args, **kwargs)
        if self.probing and isinstance(out, torch.Tensor) and out.is_floating_point():
            self.eps = max(self.eps, torch.finfo(out.dtype).eps)
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
            self.eps = max(self.eps, torch.finfo(out.dtype).eps)
            self.largest = max(self.largest, _largest(out))
            return out + torch.zeros((), dtype=out.dtype, device=out.device, requires_grad=True)
        self.saved[site.key] = layer.saved(function, given)
        return out.add_(self.shifts[site.key])

    def close(self, actual, expected, largest=None):
        """Whether two results are the same but for rounding, where `largest` may have cancelled on the way."""
        eps = max(self.eps, torch.finfo(expected.dtype).eps)
        rounding = 100 * eps * (self.largest if largest is None else largest)
        difference = _largest(actual.reshape(expected.shape) - expected)
        return difference <= eps**0.5 * _largest(expected) + rounding


def _largest(values):
    """The largest absolute value; none at all, as an expert without tokens gives, is zero."""
    return values.detach().abs().max().item() if values.numel() else 0.0


_EMBEDDINGS = {
    F.embedding: EMBEDDING.arguments,
    F.embedding_bag: (
        *("input", "weight", "offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse"),
        *("per_sample_weights", "include_last_offset", "padding_idx"),
    ),
}


def _check_embedding(given):
    if given.get("max_norm") is not None or given.get("scale_grad_by_freq"):
        raise _RefusalError(
            "model: expected an embedding without max_norm and scale_grad_by_freq, got one with, whose step is not its "
            "gradient; set both of the module to None and False"
        )
    if given.get("sparse"):
        raise _RefusalError(
            "model: expected an embedding with dense gradients, got sparse=True; set module.sparse = False"
        )


class _RefusalError(ValueError):
    """A refusal of ours, raised while the model runs."""


def probe(model, params, rest, sample, other=None, differentiates=False):
    """Run the model on a sample, alone and between two others, to find which parameters have Gram products.

    Parameters
    ----------
    model : torch.nn.Module
    params, rest : dict of str to Tensor
        The trainable parameters; all others, and the buffers.
    sample, other : Tensor (...)
        Two samples that differ; where there is one only, the other is half of it.
    differentiates : bool
        Whether the model may differentiate by its inputs: then they require gradients.

    Returns
    -------
    Probe

    Raises
    ------
    TypeError, ValueError
        For a model whose output is not a real, finite tensor (n, ...), in which samples see each other, that draws
        random numbers or changes from call to call, that uses its parameters by another reference than its modules' or
        rescales its embeddings.
    """
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}

    def run(*samples):
        return call(model, leaves | rest, _batch(samples, differentiates))

    with torch.enable_grad():
        recorder, alone, copies = _recorded(model, run, leaves, sample)
        _check_tensor(alone)
        if other is None:
            other = _half(run, sample)
        between, same = _on_several(run, other, sample, other), run(sample, sample, sample)
        _check_output(between)
        if not _same_bits(run(other, sample, other), between, recorder):
            raise ValueError(
                "model: expected the same output at every call, got another at the second; call model.eval()"
            )
        _check_independence(model, recorder, leaves, between, same)
        if copies == 1 and not (alone.numel() == same[1].numel() and recorder.close(alone, same[1])):
            (recorder, alone), copies = _record(run, leaves, sample, sample), 2
        if copies == 2 and not recorder.close(alone[0], same[1]):
            raise _dependent("the number of samples in the batch", "do not divide by len(x)")
    elsewhere = _graph_leaves(alone)
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
    hooked = recorder.hooked or any(m._backward_hooks or m._backward_pre_hooks for m in model.modules())
    if hooked:
        obstacle = "the model hooks into gradients"
    else:
        expected = alone.detach().reshape(copies, -1)[0]
        obstacle = _obstacle(model, leaves, rest, sample, copies, expected, recorder)
    if obstacle is not None:  # then the way may also depend on the sample
        left = dict.fromkeys(params, f"samples one at a time, as {obstacle}")
    sites = [site.without(left) for site in recorder.sites]
    sizes = {name: p.numel() for name, p in params.items()}
    found = [site for site in sites if site.names]
    shape = tuple(between.shape[1:])
    return Probe(model, sizes, found, left, shape, between.dtype, copies, differentiates, obstacle, hooked)


def _batch(samples, differentiates):
    """Fresh memory, as the model may write to it."""
    batch = torch.stack(samples)
    return batch.requires_grad_() if differentiates else batch


def _record(run, leaves, *samples):
    with _Recorder(leaves) as recorder:
        out = run(*samples)
    return recorder, out


def _recorded(model, run, leaves, sample):
    """A recorder of the model on one sample, its output, and 1; or the same of the sample twice, and 2.

    What squeezes its outputs may run on no batch of one.
    """
    with _no_random_numbers(model, sample.device):
        try:
            return *_record(run, leaves, sample), 1
        except _RefusalError:
            raise
        except Exception as error:  # of any kind: it comes from the model
            logger.info("the model does not run on one sample: %s", error)
        return *_on_several(partial(_record, run, leaves), sample, sample), 2


def _on_several(run, *samples):
    try:
        return run(*samples)
    except _RefusalError:
        raise
    except Exception as error:
        remedy = (
            "where rows are coupled, as the nodes of a graph, let a sample be the index of a row, and the model return "
            "net(rows)[index]"
        )
        if not samples[0].is_floating_point():
            remedy = f"if it takes no {samples[0].dtype}, convert the inputs, x.to(dtype)"
        raise ValueError(
            f"model: expected one that runs on any number of samples, got on {len(samples)}: {error}; {remedy}"
        ) from error


def _half(run, sample):
    """Half of the sample, if the model takes it; else the sample itself."""
    half = (sample / 2).to(sample.dtype)
    try:
        return half if run(half, sample, half).isfinite().all() else sample
    except Exception as error:
        logger.info("one sample, and the model does not take half of it: %s", error)
        return sample


def _same_bits(again, out, recorder):
    """Only on the CPU are sums taken in one order."""
    return torch.equal(again, out) or (out.device.type != "cpu" and recorder.close(again, out))


def _check_independence(model, recorder, leaves, between, same):
    """Raise unless a sample between others gives what it gives between itself, in its output and its gradient.

    The batches are of one shape, so that rounding is the same, bit for bit, but where the data decide what is batched.
    An output that starts at zero shows nothing; the gradients of its last layer do.
    """
    (row, gradients), (expected, of_expected) = _middle(between, leaves), _middle(same, leaves)
    fine = recorder.close(row, expected)
    if all(g.isfinite().all() for g in (*gradients, *of_expected)):  # else the kernel is not, and the caller says so
        largest = max(map(_largest, of_expected), default=0.0)
        fine &= all(recorder.close(*pair, largest) for pair in zip(gradients, of_expected, strict=True))
    if not fine:
        raise _dependent("the other samples in the batch", _remedy(model))
    if not all(recorder.close(row, expected) for row in same):
        raise _dependent("its place in the batch", "let the first axis count samples throughout (batch_first=True)")


def _middle(out, leaves):
    """The middle sample's output, and the gradients of a weighted sum of it by parameters that take little memory."""
    row, small = out[1].reshape(-1), [p for p in leaves.values() if p.numel() <= SMALL]
    if not (row.requires_grad and small):
        return row.detach(), []
    weights = torch.linspace(1, 2, len(row), dtype=row.dtype, device=row.device)
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    return row.detach(), torch.autograd.grad((weights * row).sum(), small, **options)


def _dependent(on, remedy):
    return ValueError(
        f"model: expected an output of each sample by itself, got one that depends on {on}, where the kernel of a pair "
        f"of points has no meaning; {remedy}"
    )


def _remedy(model):
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (fault := _fault(module)):
            return f"{name or 'the model'} is a {type(module).__name__} {fault}"
    return "normalize, centre and attend within samples only (torch.nn.MultiheadAttention: batch_first=True)"


def _fault(module):
    """Why the module's output depends on the batch or on chance, and what to do; None if it does not."""
    if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
        if module.training:
            return "in training mode; call model.eval()"
        return "without running statistics; keep track_running_stats=True"
    if isinstance(module, _DropoutNd) and module.training and module.p > 0:
        return "in training mode; call model.eval()"
    return None


def _level():
    """How deep in the transforms of torch.func and of forward-mode differentiation."""
    return maybe_current_level(), forward_ad._current_level


def _check_tensor(out):
    if not isinstance(out, torch.Tensor):
        remedy = "wrap the model in one that returns the tensor meant"
        raise TypeError(f"model: expected a tensor as output, got {type(out).__name__}; {remedy}")
    if not out.is_floating_point():
        raise TypeError(f"model: expected a floating-point output, got {out.dtype}")
    if out.layout is not torch.strided:
        raise TypeError(f"model: expected a dense output, got one of {out.layout}; return out.to_dense()")


def _check_output(out):
    _check_tensor(out)
    if out.shape[:1] != (3,) or out.numel() == 0:
        raise ValueError(f"model: expected output (n, ...), a row for each sample, got {tuple(out.shape)} for n = 3")
    if not out.isfinite().all():
        raise ValueError(
            f"model: expected finite outputs, got NaN or infinity for a sample; if {out.dtype} overflows, call "
            "model.double()"
        )


def _obstacle(model, leaves, rest, sample, copies, expected, recorder):
    """The obstacle to running the model by vmap and back to its first parameter, or None."""
    params, first = {name: p.detach() for name, p in leaves.items()}, next(iter(leaves))

    def outputs(x):
        def by_first(p):
            return call(model, params | rest | {first: p}, torch.stack([x] * copies)).reshape(copies, -1)[0]

        value, pull_back = vjp(by_first, params[first])
        return value, pull_back(torch.ones_like(value))

    try:
        same = recorder.close(vmap(outputs)(sample.unsqueeze(0))[0][0], expected)
        return None if same else "vmap gives another output"
    # Alone, the model ran: it writes in place, decides by the data, lacks a rule of vmap's...
    except Exception as error:
        return f"vmap can't run the model: {error}"


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
def _no_random_numbers(model, device):
    """Raise ValueError if any were drawn inside, from the global generators; put those back then."""
    cuda = [device] if device.type == "cuda" else []

    def states():
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, cuda)]

    before = states()
    try:
        with _Draws() as draws:
            yield
    finally:
        drew = draws.any and not all(map(torch.equal, before, states()))
        if drew:
            torch.set_rng_state(before[0])
            for at, state in zip(cuda, before[1:], strict=True):
                torch.cuda.set_rng_state(state, at)
    if drew:
        faults = [(name, m) for name, m in model.named_modules() if isinstance(m, _DropoutNd) and _fault(m)]
        by = "".join(f" by {name or 'the model'}, a {type(m).__name__} {_fault(m)}" for name, m in faults[:1])
        raise ValueError(f"model: expected no random numbers to be drawn, got some{by or '; call model.eval()'}")


class _Draws(TorchDispatchMode):
    """Notice operations that may draw random numbers in this thread; others may draw at the same time."""

    any = False
    supports_higher_order_operators = True  # which have no tags of their own, but call operations

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.any |= torch.Tag.nondeterministic_seeded in getattr(function, "tags", ())
        return function(*args, **(kwargs or {}))


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


_WRAPPED = {
    nn.DataParallel: "model.module",
    nn.parallel.DistributedDataParallel: "model.module",
    torch.jit.ScriptModule: "the torch.nn.Module that it was made from",
}


def check_model(model):
    """Check a model; return the checks of its inputs, which must be of the dtype and device of its parameters."""
    for name, module in model.named_modules() if isinstance(model, nn.Module) else []:
        kind, where = type(module), name or "the model"
        instead = next((text for wrapper, text in _WRAPPED.items() if isinstance(module, wrapper)), None)
        if kind.__name__ == "OptimizedModule":  # its import would take seconds
            instead = "what was compiled, model._orig_mod"
        if kind.__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            instead = "the floating-point model that was quantized"
        if instead is not None:
            raise TypeError(
                f"model: expected modules that can be differentiated, but {where} is a {kind.__name__}; pass {instead}"
            )
    params = require_trainable(model)
    for name, p in params.items():
        if p._backward_hooks:
            raise ValueError(f"model: expected parameters without hooks on their gradients, but {name} has one")
    return Arguments(("the parameters", next(iter(params.values()))))


def check_modes(model):
    """Raise where a module depends on the batch or on chance, used or not; for who has no sample to `probe` with."""
    for name, module in model.named_modules():
        if fault := _fault(module):
            raise ValueError(
                f"model: expected no module whose output depends on the batch or on chance, got {name or 'the model'}, "
                f"a {type(module).__name__} {fault}"
            )
