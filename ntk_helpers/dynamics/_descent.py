"""Steps of full-batch gradient descent: of any module by automatic differentiation, of an MLP without a graph.

Each way has ``loss()``, the loss of each member now, and ``advance(steps)``, which changes the parameters and returns
the losses before each step, (steps,) or (steps, S).
"""

import math
from functools import partial

import torch
from torch import nn

from ntk_helpers._utils.functional import ensemble_size
from ntk_helpers.models import ACTIVATIONS, MLP

BLOCK = 4 * 2**20  # bytes of a hidden layer to work on at once: with more, it no longer stays in a processor's caches
FEW = 32  # columns of a result below which a product is several times slower than that of the transposes


def descent(model, x, y, learning_rate, momentum):
    """The fastest way to descend half the mean square error."""
    fits = _is_plain_mlp(model) and x.shape[1:] == (model.d_in,) and y.shape[1:] == model.weights[-1].shape[-2:-1]
    if not fits or torch.is_autocast_enabled(x.device.type):
        return _by_autograd(model, x, y, learning_rate, momentum)
    one_layer_of_relus = len(model.weights) == 2 and model.activation is torch.relu and y.shape[1] == 1
    return (ShallowDescent if one_layer_of_relus else LayeredDescent)(model, x, y, learning_rate, momentum)


def _by_autograd(model, x, y, learning_rate, momentum):
    losses = partial(half_mean_square, y=y, ensemble_size=ensemble_size(model))
    return Autograd(model, x, losses, learning_rate, momentum)


def half_mean_square(prediction, y, ensemble_size):
    """Half the mean square error: a scalar, or (S,) for an ensemble."""
    if not isinstance(prediction, torch.Tensor):
        raise TypeError(
            f"model: expected one that returns a tensor, got {type(prediction).__name__}; wrap it in one that returns "
            "the tensor to train, or give a loss of your own"
        )
    expected = prediction.shape if ensemble_size is None else prediction.shape[1:]
    if y.shape != expected:  # broadcasting (n,) against (n, 1) would go unnoticed
        raise ValueError(
            f"y: expected the shape of the predictions, {tuple(expected)}, got {tuple(y.shape)}; reshape one of them"
        )
    return (prediction - y).square().flatten(-y.ndim).mean(-1) / 2


class Autograd:
    """Any module and any loss, a function of its output; by `optimizer`, or by gradient descent with momentum."""

    def __init__(self, model, x, losses, learning_rate=None, momentum=0.0, optimizer=None):
        self.model, self.x, self.losses, self.optimizer = model, x, losses, optimizer
        self.learning_rate, self.momentum = learning_rate, momentum
        self.velocities = {}

    @torch.enable_grad()  # which the model may use to differentiate by its inputs
    def loss(self):
        """The loss now, leaving batch statistics and random numbers to the steps."""
        buffers = [(m, name, b, b.clone()) for m in self.model.modules() for name, b in m.named_buffers(recurse=False)]
        with torch.random.fork_rng([self.x.device] if self.x.is_cuda else []):
            losses = self.losses(self.model(self.x)).detach()
        for module, name, buffer, before in buffers:
            buffer.detach().copy_(before)
            if getattr(module, name) is not buffer:
                setattr(module, name, buffer)
        return losses

    @torch.enable_grad()
    def advance(self, steps):
        step = self._descend if self.optimizer is None else self._optimize
        return torch.stack([step() for _ in range(steps)])

    def _descend(self):
        losses, params = self.losses(self.model(self.x)), self._params()
        gradients = torch.autograd.grad(losses.sum(), params, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            velocities = self._velocities_of(params) if self.momentum else None
            targets = _targets(params, velocities, self.momentum)
            for target, gradient in zip(targets, gradients, strict=True):
                target.sub_(gradient, alpha=self.learning_rate)
            _move(params, velocities)
        return losses.detach()

    def _velocities_of(self, params):
        self.velocities |= {p: torch.zeros_like(p) for p in params if p not in self.velocities}
        return [self.velocities[p] for p in params]

    def _params(self):
        """What to train, at each step anew: a user may freeze or unfreeze parameters, or add some to the optimizer."""
        groups = [{"params": self.model.parameters()}] if self.optimizer is None else self.optimizer.param_groups
        return [p for group in groups for p in group["params"] if p.requires_grad]

    def _optimize(self):
        found = []

        def closure():  # some optimizers call it several times a step
            self.optimizer.zero_grad()
            losses = self.losses(self.model(self.x))
            losses.sum().backward(inputs=self._params())
            found.append(losses.detach())
            return losses.sum()

        self.optimizer.step(closure)
        return found[0]


def _is_plain_mlp(model):
    """Whether a model is an MLP as its class makes it: nothing replaced, added, frozen, shared or hooked to."""
    if type(model) is not MLP or model.activation not in tuple(_ELEMENTWISE):
        return False
    networks = _networks(model)
    params = [p for net in networks for p in (*net.weights, *net.biases)]
    return (
        all(type(net) is MLP and not {"forward", "_layers", "_layer"} & vars(net).keys() for net in networks)
        and all(net.activation is model.activation and net._scales == model._scales for net in networks)
        and len({tuple(p.shape for p in (*net.weights, *net.biases)) for net in networks}) == 1
        and all(net.twin is None and net.output_scale == 1 for net in networks[1:])
        and not any(getattr(net, f"_{kind}_hooks") for net in networks for kind in _HOOKS)
        and all(type(p) is nn.Parameter and p.requires_grad and not p._backward_hooks for p in params)
        and sorted(map(id, params)) == sorted(map(id, model.parameters()))
    )


def _networks(model):
    return [model] if model.twin is None else [model, model.twin]


_HOOKS = ("forward", "forward_pre", "backward", "backward_pre")


class _MLPDescent:
    """An MLP as its copies, the network and its twin if it has one: each with its factor in the output, and its layers.

    Layers are weights (S, fan_out, fan_in) and biases (S, fan_out), views of the parameters, and their scales. As the
    members do not see each other, all steps are taken with a block of them that fits the caches, then with the next.
    """

    def __init__(self, model, x, y, learning_rate, momentum):
        self.model, self.x, self.y = model, x.detach(), y.detach()
        self.learning_rate, self.momentum = learning_rate, momentum
        factor = model.output_scale if model.twin is None else model.output_scale / math.sqrt(2)
        self.factors = [factor] if model.twin is None else [factor, -factor]
        self.size = model.ensemble_size
        block = max(1, BLOCK // (len(self.factors) * model.weights[0].shape[-2] * len(x) * x.element_size()))
        self.blocks = [slice(start, start + block) for start in range(0, self.size or 1, block)]
        self._start([_layers(net, model._scales) for net in _networks(self.model)])

    @torch.no_grad()
    def loss(self):
        return half_mean_square(self.model(self.x), self.y, self.size)

    @torch.no_grad()
    def advance(self, steps):
        if not _is_plain_mlp(self.model):  # any more
            return self._by_autograd(steps)
        losses = self.x.new_empty(steps, self.size or 1)
        # Anew: a user may have replaced them.
        copies = [_layers(net, self.model._scales) for net in _networks(self.model)]
        self._steps(copies, losses)
        return losses[:, 0] if self.size is None else losses

    def _by_autograd(self, steps):
        if self.momentum:
            raise RuntimeError(
                "record: expected functions that leave an MLP trained with momentum as it is, one froze or added "
                "something; train by an optimizer, torch.optim.SGD, or change the model before"
            )
        return _by_autograd(self.model, self.x, self.y, self.learning_rate, self.momentum).advance(steps)


def _layers(net, scales):
    weights = [w.detach() if w.ndim == 3 else w.detach().unsqueeze(0) for w in net.weights]
    if not len(net.biases):  # as if they were zero and stayed there
        return [(w, w.new_zeros(w.shape[:2]), w_scale, 0.0) for w, (w_scale, _) in zip(weights, scales, strict=True)]
    biases = [b.detach() if b.ndim == 2 else b.detach().unsqueeze(0) for b in net.biases]
    return [(w, b, *scale) for w, b, scale in zip(weights, biases, scales, strict=True)]


class _Layer:
    """A layer of a block of members with its input h, its pre-activation z, and the gradient of the loss by h."""

    def __init__(self, weights, biases, w_scale, b_scale, velocities, h):
        self.weights, self.biases, self.w_scale, self.b_scale = weights, biases, w_scale, b_scale
        self.velocities, self.h = velocities, h
        self.z = h.new_empty(len(weights), weights.shape[1], h.shape[-1])
        self.gradient = torch.empty_like(h)


class LayeredDescent(_MLPDescent):
    """Any MLP, layer by layer: the gradient of the weights is added to the weights by the product that makes it.

    Written to fresh memory at every step, as autograd does, it costs as much as the product. Units lie on the next to
    last axis and samples on the last.
    """

    def _start(self, copies):
        self.activation, self.derivative = _ELEMENTWISE[self.model.activation]
        self.velocities = [[_velocities(layer[:2], self.momentum) for layer in layers] for layers in copies]

    def _steps(self, copies, losses):
        for members in self.blocks:
            block = [self._block(members, *copy) for copy in zip(copies, self.velocities, strict=True)]
            for loss in losses[:, members]:
                self._step(block, loss)

    def _step(self, copies, loss):
        for layers in copies:
            self._forward(layers)
        outputs = (factor * layers[-1].z for factor, layers in zip(self.factors, copies, strict=True))
        residual = sum(outputs) - self.y.mT
        loss.copy_(residual.square().mean((-2, -1)) / 2)
        for factor, layers in zip(self.factors, copies, strict=True):
            self._backward(layers, factor / self.y.numel() * residual)

    def _block(self, members, copy, velocities):
        layers, h = [], self.x.mT
        for (w, b, *scales), velocity in zip(copy, velocities, strict=True):
            h = h.expand(len(w[members]), *h.shape) if not layers else torch.empty_like(layers[-1].z)
            layers.append(_Layer(w[members], b[members], *scales, velocity and [v[members] for v in velocity], h))
        return layers

    def _forward(self, layers):
        for layer, after in zip(layers, [*layers[1:], None], strict=True):
            biases, scales = layer.biases.unsqueeze(-1), {"beta": layer.b_scale, "alpha": layer.w_scale}
            torch.baddbmm(biases, layer.weights, layer.h, **scales, out=layer.z)
            if after is not None:
                self.activation(layer.z, after.h)

    def _backward(self, layers, gradient):
        """Change the layers from the last to the first, given the gradient of the loss by the output."""
        for layer, before in zip(reversed(layers), [*reversed(layers[:-1]), None], strict=True):
            params = layer.weights, layer.biases
            if before is not None:
                layer.gradient.baddbmm_(layer.weights.mT, gradient, beta=0, alpha=layer.w_scale)
            to_weights, to_biases = _targets(params, layer.velocities, self.momentum)
            _add_product(to_weights, gradient, layer.h.mT, -self.learning_rate * layer.w_scale)
            to_biases.add_(gradient.sum(-1), alpha=-self.learning_rate * layer.b_scale)
            _move(params, layer.velocities)
            if before is not None:
                gradient = layer.gradient.mul_(self.derivative(before.z, layer.h))


# Of each activation h = phi(z): how to write it to h, and its derivative in the place of z.
_ELEMENTWISE = {
    torch.relu: (lambda z, h: torch.clamp(z, min=0, out=h), lambda z, h: z.gt_(0)),
    torch.tanh: (lambda z, h: torch.tanh(z, out=h), lambda z, h: torch.mul(h, h, out=z).neg_().add_(1)),
    torch.erf: (lambda z, h: torch.erf(z, out=h), lambda z, h: z.square_().neg_().exp_().mul_(2 / math.sqrt(math.pi))),
    nn.functional.gelu: (
        lambda z, h: nn.functional.gelu(z, out=h),  # type: ignore[call-arg] # its types lack `out`
        lambda z, h: torch.ops.aten.gelu_backward.grad_input(torch.ones_like(z), z, grad_input=z),
    ),
    torch.sin: (lambda z, h: torch.sin(z, out=h), lambda z, h: z.cos_()),
    torch.cos: (lambda z, h: torch.cos(z, out=h), lambda z, h: z.sin_().neg_()),
    torch.abs: (lambda z, h: torch.abs(z, out=h), lambda z, h: z.sign_()),
    ACTIVATIONS["identity"]: (lambda z, h: h.copy_(z), lambda z, h: z.fill_(1)),
}


def _add_product(target, left, right, factor):
    """Add factor times left @ right."""
    if target.shape[-1] < FEW:
        target.add_((right.mT @ left.mT).mT, alpha=factor)
    else:
        target.baddbmm_(left, right, alpha=factor)


class ShallowDescent(_MLPDescent):
    r"""One hidden layer of ReLUs and one output, in a dozen operations on all hidden units of many members.

    With inputs :math:`\tilde x = (s_1 x, s_b)`, weights :math:`w_j` with their bias, and the residuals :math:`r_i`,

    .. math:: G_j = \sum_i r_i 1[w_j \cdot \tilde x_i > 0] \tilde x_i, \qquad
              \partial w_j \propto a_j G_j, \qquad \partial a_j \propto w_j \cdot G_j:

    both gradients follow from one sum over the samples, to which the hidden layer only gives the signs. Units lie on
    the last axis, where products of few rows are fast. A twin's units stand beside the network's own, with the sign of
    their readout turned.
    """

    def _start(self, copies):
        (*_, w_scale, b_scale), (*_, a_scale, c_scale) = copies[0]
        self.a_scale, self.c_scale = self.factors[0] * a_scale, self.factors[0] * c_scale
        constant = self.x.new_full((1, len(self.x)), b_scale)
        self.inputs = torch.cat([w_scale * self.x.mT, constant])  # (d + 1, n)
        self.velocities = _velocities(_packed(copies), self.momentum)

    def _steps(self, copies, losses):
        packed = _packed(copies)
        for members in self.blocks:
            velocities = self.velocities and [v[members] for v in self.velocities]
            self._advance([p[members] for p in packed], velocities, losses[:, members])
        _unpack(packed, copies)
        losses.square_().div_(2 * len(self.x))

    def _advance(self, params, velocities, norms):
        weights, readout, constant = params
        inputs = self.inputs.expand(len(weights), *self.inputs.shape)
        minus_y = -self.y.mT.expand(len(weights), *self.y.mT.shape)
        hidden, residual = weights.new_empty(len(weights), weights.shape[-1], len(self.x)), torch.empty_like(minus_y)
        weighted, sums = torch.empty_like(inputs), torch.empty_like(weights)
        products, to_readout = torch.empty_like(weights), torch.empty_like(readout)
        step = -self.learning_rate / len(self.x)
        for norm in norms:
            torch.bmm(weights.mT, inputs, out=hidden).relu_()
            torch.add(minus_y, constant.sum(-1, keepdim=True), alpha=self.c_scale, out=residual)
            residual.baddbmm_(readout, hidden, alpha=self.a_scale)
            torch.linalg.vector_norm(residual, dim=(-2, -1), out=norm)
            torch.mul(inputs, residual, out=weighted)
            torch.bmm(weighted, hidden.sign_().mT, out=sums)
            torch.sum(torch.mul(weights, sums, out=products), -2, keepdim=True, out=to_readout)
            to_weights, to_a, to_constant = _targets(params, velocities, self.momentum)
            to_weights.addcmul_(readout, sums, value=step * self.a_scale)
            to_a.add_(to_readout, alpha=step * self.a_scale)
            to_constant.add_(residual.sum(-1, keepdim=True), alpha=step * self.c_scale)
            _move(params, velocities)


SIGNS = (1, -1)  # of a network and its twin in the output


def _packed(copies):
    """Weights (S, d + 1, units), readout (S, 1, units), and the output's biases (S, 1, copies)."""
    packed = [
        (torch.cat([w.mT, b.unsqueeze(1)], 1), sign * a, sign * c.unsqueeze(1))
        for sign, ((w, b, *_), (a, c, *_)) in zip(SIGNS, copies, strict=False)
    ]
    return [torch.cat(parts, -1) for parts in zip(*packed, strict=True)]


def _unpack(packed, copies):
    """Back to where they came from."""
    parts = zip(*(p.chunk(len(copies), -1) for p in packed), strict=True)
    for sign, ((w, b, *_), (a, c, *_)), (weights, readout, constant) in zip(SIGNS, copies, parts, strict=False):
        w.copy_(weights[:, :-1].mT)
        b.copy_(weights[:, -1])
        a.copy_(sign * readout)
        c.copy_(sign * constant.squeeze(1))


def _velocities(params, momentum):
    r"""Of heavy-ball descent, in its form :math:`u \leftarrow \mu u - \eta \nabla L,\ \theta \leftarrow \theta + u`."""
    return [torch.zeros_like(p) for p in params] if momentum else None


def _targets(params, velocities, momentum):
    """What the gradients times minus the learning rate are added to: the parameters, or their velocities."""
    return params if velocities is None else [v.mul_(momentum) for v in velocities]


def _move(params, velocities):
    if velocities is not None:
        for p, velocity in zip(params, velocities, strict=True):
            p.add_(velocity)
