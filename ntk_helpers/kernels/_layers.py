r"""The tangent kernel layer by layer, from Gram products of inputs and sensitivities, without the network's Jacobian.

A layer :math:`z_t = W h_t + b` adds to the gradient of an output :math:`\sum_t s_t h_t^\top` for W and
:math:`\sum_t s_t` for b. The sums go over the layer's locations t (the one row of a vector, the pixels of an image, the
tokens of a text), and the sensitivity :math:`s_t` is the derivative of the output by :math:`z_t`. Inner products of
such gradients factorise,

.. math:: \Theta_W = \sum_{t, u} \langle h_t, h'_u \rangle \langle s_t, s'_u \rangle, \qquad
          \Theta_b = \sum_{t, u} \langle s_t, s'_u \rangle,

so that a forward pass, and a backward pass for each output, give the kernel ("structured derivatives" in Novak et al.
2022).
"""

from dataclasses import dataclass, replace
from math import prod
from numbers import Integral

import torch
import torch.nn.functional as F

from ntk_helpers.kernels._gram import gradient_gram, gram, output_pairs, strips, summed


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


EMBEDDING = _Embedding()
LAYERS = {
    F.linear: _Linear(),
    torch.conv1d: _Convolution(),
    torch.conv2d: _Convolution(),
    F.layer_norm: _Normalization("input", "normalized_shape", "weight", "bias", "eps"),
    F.group_norm: _Normalization("input", "num_groups", "weight", "bias", "eps"),
    F.batch_norm: _Normalization(
        "input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"
    ),
    F.embedding: EMBEDDING,
}


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
