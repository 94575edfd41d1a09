"""All methods of the empirical kernel against plain autograd, over modules drawn at random and chosen by hand."""

import logging

import pytest
import torch
import torch.nn.functional as F
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ntk_helpers import MLP, empirical_ntk, linearize, ntk_vector_product
from ntk_helpers.kernels import _gram, _methods

METHODS = ["auto", "jacobian", "vector_product"]
EPS = 0.1  # of norms: with less, they would magnify the rounding of what is nearly constant


def by_autograd(model, x1, x2, output):
    """Kernel blocks of all trainable parameters by one backward pass per sample and output: no torch.func, no vmap."""
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def jacobians(x):
        rows = []
        for sample in x:
            values = model(sample.unsqueeze(0)).reshape(-1)
            options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
            rows.append([torch.autograd.grad(value, list(params.values()), **options) for value in values])
        return {
            name: torch.stack([torch.stack([g[i].flatten() for g in row]) for row in rows])
            for i, name in enumerate(params)
        }

    pattern = {"full": "iap,jbp->ijab", "diagonal": "iap,jap->ija", "trace": "iap,jap->ij"}[output]
    j1, j2 = jacobians(x1), jacobians(x2)
    return {name: torch.einsum(pattern, j1[name], j2[name]) for name in params}


def assert_equal_kernels(actual, expected):
    """To 1e-12 of the largest entry."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12 * max(expected.abs().max().item(), 1e-300))


def assert_all_methods_agree(model, x1, x2, output="full", methods=METHODS, chunk_size=None):
    blocks = by_autograd(model, x1, x2, output)
    total = sum(blocks.values())
    for method in methods:
        options = {"output": output, "method": method, "chunk_size": chunk_size}
        assert_equal_kernels(empirical_ntk(model, x1, x2, **options), total)
        per_layer = empirical_ntk(model, x1, x2, **options, per_layer=True)
        assert per_layer.keys() == blocks.keys()
        for name, block in per_layer.items():
            torch.testing.assert_close(block, blocks[name], rtol=0, atol=1e-12 * total.abs().max().item())


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Reads(nn.Module):
    """Uses a parameter of another module as if it were data."""

    def __init__(self, parameter):
        super().__init__()
        self.parameter = parameter

    def forward(self, x):
        return x + torch.tanh(self.parameter).mean()


class Multiplies(nn.Module):
    """A linear layer written as in the NTK parameterization."""

    def __init__(self, fan_in, fan_out):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(fan_out, fan_in)), nn.Parameter(torch.randn(fan_out))

    def forward(self, x):
        return F.linear(x, self.weight / self.weight.shape[1] ** 0.5, 0.1 * self.bias)


class Last(nn.Module):
    def forward(self, x):
        return x.transpose(-2, -1)


class Attends(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.attention = nn.MultiheadAttention(size, 1, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def divisors(*numbers):
    return [d for d in range(1, 5) if all(number % d == 0 for number in numbers)]


@st.composite
def convolution(draw, x, kind):
    """A convolution of any geometry that leaves at least one place."""
    axes = x.ndim - 2
    kernel = [draw(st.integers(1, min(3, size))) for size in x.shape[2:]]
    dilation = [
        draw(st.integers(1, 2)) if (k - 1) * 2 < size else 1 for k, size in zip(kernel, x.shape[2:], strict=True)
    ]
    padding = draw(st.one_of(st.sampled_from(["same", "valid"]), st.tuples(*[st.integers(0, 2)] * axes), st.just((1,))))
    stride = 1 if padding == "same" else tuple(draw(st.integers(1, 2)) for _ in range(axes))
    channels = draw(st.integers(1, 4))
    groups = draw(st.sampled_from(divisors(x.shape[1], channels)))
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    mode = draw(st.sampled_from(["zeros", "circular"])) if padding == "same" else "zeros"
    return kind(x.shape[1], channels, kernel, padding_mode=mode, **options)


@st.composite
def layer(draw, x, earlier):
    """One layer that can follow on x: (1, d), (1, T, d), (1, channels, length) or (1, channels, height, width)."""
    size, channels = x.shape[-1], x.shape[1]
    activations = [nn.Tanh(), nn.ReLU(), nn.GELU(), nn.Softplus()]
    choices = {
        "activation": lambda: draw(st.sampled_from(activations)),
        "linear": lambda: nn.Linear(size, draw(st.sampled_from([size, size, 1, 2, 5])), bias=draw(st.booleans())),
        "layer norm": lambda: nn.LayerNorm(x.shape[draw(st.integers(1, x.ndim - 1)) :], EPS, bias=draw(st.booleans())),
        "in place": lambda: nn.Sequential(nn.Linear(size, size), nn.ReLU(inplace=True)),
        "multiple": lambda: Multiplies(size, draw(st.integers(1, 5))),
        "rms norm": lambda: nn.RMSNorm(size, EPS),
    }
    if x.ndim == 2:
        choices["batch norm"] = lambda: nn.BatchNorm1d(size)
    if x.ndim == 3:
        choices["convolution"] = lambda: draw(convolution(x, nn.Conv1d))
        choices["batch norm"] = lambda: nn.BatchNorm1d(channels)
        choices["transpose"] = Last
        choices["attention"] = lambda: Attends(size)
    if x.ndim == 4:
        choices["convolution"] = lambda: draw(convolution(x, nn.Conv2d))
        choices["batch norm"] = lambda: nn.BatchNorm2d(channels)
        choices["transposed convolution"] = lambda: nn.ConvTranspose2d(channels, 2, 2)
    if x.numel() > channels:  # else it does not run on one sample
        choices["group norm"] = lambda: nn.GroupNorm(draw(st.sampled_from(divisors(channels))), channels, EPS)
    if x.ndim > 2:
        choices["prelu"] = lambda: nn.PReLU(channels)
    # Nesting and sharing
    choices["nested"] = lambda: Residual(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, size, bias=False))
    fitting = [module for module in earlier if isinstance(module, nn.Linear) and module.weight.shape == (size, size)]
    if fitting and draw(st.booleans()):
        other = draw(st.sampled_from(fitting))
        return draw(st.sampled_from([other, tie(nn.Linear(size, size), other)]))
    weights = [p for module in earlier for p in module.parameters()]
    if weights:
        choices["reads"] = lambda: Reads(draw(st.sampled_from(weights)))
    return choices[draw(st.sampled_from(sorted(choices)))]()


def tie(module, other):
    module.weight = other.weight
    return module


@st.composite
def networks(draw):
    """A model and inputs for it: (model, x1, x2)."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    shape = draw(st.sampled_from([(3,), (4, 3), (2, 7), (2, 5, 4), (3, 4, 6), "tokens"]))
    layers, n1, n2 = [], draw(st.integers(1, 4)), draw(st.integers(1, 4))
    if shape == "tokens":
        x = torch.randint(0, 6, (n1 + n2, 5))
        layers.append(nn.Embedding(6, 3, padding_idx=draw(st.sampled_from([None, 2, -1]))))
    else:
        x = torch.randn(n1 + n2, *shape, dtype=torch.float64)
    at = nn.Sequential(*layers).double()(x[:1])
    for _ in range(draw(st.integers(0, 6))):
        layers.append(draw(layer(at, layers)).double().eval())
        at = layers[-1](at.clone())
    layers += [nn.Flatten(), nn.Linear(at.numel(), draw(st.integers(1, 3)))]
    model = nn.Sequential(*layers).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scales = p.ndim == 1 and name.endswith("weight")  # after a small one, a norm would magnify the rounding
            p.uniform_(0.5, 1.5) if scales else p.normal_(std=0.7)
    for p in list(model.parameters())[:-1]:  # the last bias is always trained
        p.requires_grad_(not draw(st.booleans()) or draw(st.booleans()))
    return model, x[:n1], x[n1:]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # it may copy, says torch, once
@settings(max_examples=200, deadline=None, derandomize=False)  # in CI too: see conftest.py
@given(networks(), st.sampled_from(["full", "diagonal", "trace"]), st.sampled_from([None, 1, 2, 3]))
def test_random_modules(network, output, chunk_size):
    """`pytest --hypothesis-show-statistics` tells what was drawn, and what fell back."""
    model, x1, x2 = network
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("ntk_helpers.empirical")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        assert_all_methods_agree(model, x1, x2, output, chunk_size=chunk_size)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    for message in {message.partition(" ")[2] for message in messages}:
        event(message)
    if not messages:
        event("layerwise alone")
    symmetric = empirical_ntk(model, x1, output=output, chunk_size=chunk_size)
    assert_equal_kernels(symmetric, sum(by_autograd(model, x1, x1, output).values()))
    swapped = symmetric.permute(1, 0, 3, 2) if output == "full" else symmetric.transpose(0, 1)
    assert torch.equal(symmetric, swapped)


@pytest.mark.parametrize(("make", "shape"), [(nn.Conv1d, (4, 9)), (nn.Conv2d, (4, 7, 8))])
@pytest.mark.parametrize(
    "options", [{"stride": 2}, {"dilation": 3}, {"padding": 1}, {"groups": 2}, {"stride": 3, "padding": 2}]
)
def test_convolutions(make, shape, options, normal):
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(make(4, 2, 2, **options), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)).double(),
        normal(3, *shape),
    )
    model(x)
    for output in ("full", "trace"):
        assert_all_methods_agree(model, x, x[:2], output, methods=["layerwise"])


def test_a_convolution_without_options(normal):
    """The function has its own defaults; modules give every option."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(normal(3, 2, 2))

        def forward(self, x):
            return torch.tanh(F.conv1d(x, self.weight)).mean(-1)

    x = normal(3, 2, 5)
    assert_all_methods_agree(Net(), x, x[:2], methods=["layerwise"])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(("make", "shape"), [(nn.Conv1d, (2, 7)), (nn.Conv2d, (2, 5, 4))])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_same_padding(make, shape, size, normal):
    """For an even kernel it has one place more after the image than before."""
    torch.manual_seed(0)
    model = nn.Sequential(make(2, 3, size, padding="same"), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)).double()
    x = normal(3, *shape)
    model(x)
    assert_all_methods_agree(model, x, x[:2], methods=["layerwise"])


def test_padding_counted_from_the_end():
    """An index below zero, as functions of PyTorch take it, is that of the same row."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.readout = nn.Parameter(torch.randn(5, 3)), nn.Linear(3, 2)

        def forward(self, tokens):
            return self.readout(torch.tanh(F.embedding(tokens, self.weight / 3, padding_idx=-2)).sum(1))

    torch.manual_seed(0)
    model, tokens = Net().double(), torch.tensor([[0, 3, 3], [3, 4, 1], [2, 3, 4]])
    assert_all_methods_agree(model, tokens, tokens, methods=["layerwise"])


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.readout = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.readout(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class Tied(nn.Module):
    """Word embeddings that are also the readout's weights; one index is padding, which the embedding does not train."""

    def __init__(self):
        super().__init__()
        self.embedding, self.readout = nn.Embedding(7, 3, padding_idx=2), nn.Linear(3, 7, bias=False)
        self.readout.weight = self.embedding.weight

    def forward(self, tokens):
        return self.readout(torch.tanh(self.embedding(tokens)).mean(1))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.readout = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.readout(torch.tanh(self.inner(x))) + x @ self.inner.weight[:2].mT


class Idle(nn.Module):
    """Calls a layer and forgets the result, but uses its weight."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x):
        self.inner(x)
        return torch.tanh(x @ self.inner.weight.mT)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.other = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.inner(x)


class TokensFirst(nn.Module):
    """Computes with the samples on the second axis."""

    def __init__(self):
        super().__init__()
        self.inner, self.readout = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.readout(torch.tanh(self.inner(x.transpose(0, 1)))).mean(0)


class Frames(nn.Module):
    """Folds the images of every sample into the batch."""

    def __init__(self):
        super().__init__()
        self.convolution, self.readout = nn.Conv2d(1, 2, 2), nn.Linear(2, 2)

    def forward(self, x):
        h = self.convolution(x.reshape(-1, 1, *x.shape[2:])).mean((-2, -1))
        return self.readout(torch.tanh(h).reshape(len(x), -1, 2).sum(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent, self.readout = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.readout(self.recurrent(x)[0][:, -1])


class Branches(nn.Module):
    """Decides by the data, which vmap can't follow."""

    def __init__(self):
        super().__init__()
        self.readout = nn.Linear(3, 2)

    def forward(self, x):
        return torch.cat([self.readout(row if row.sum() > 0 else torch.tanh(row)) for row in x.split(1)])


VECTORS, TOKENS, SEQUENCES = (3,), torch.randint(0, 7, (7, 5), generator=torch.Generator().manual_seed(0)), (4, 3)
LEFT = {
    "called twice": (Twice, VECTORS, "inner.weight by its Jacobian: used by 2 layers, or calls of one"),
    "tied": (Tied, TOKENS, "embedding.weight by its Jacobian: used by 2 layers, or calls of one"),
    "used as a function": (Functional, VECTORS, "inner.weight by its Jacobian: used by a layer, and elsewhere too"),
    "a forgotten result": (Idle, VECTORS, "inner.weight by its Jacobian: used by a layer, and elsewhere too"),
    "unknown module": (
        lambda: nn.Sequential(nn.RMSNorm(3), nn.Linear(3, 2)),
        VECTORS,
        "0.weight by its Jacobian: RMSNorm uses it in a way that has no Gram product here",
    ),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)),
        VECTORS,
        "0.parametrizations.weight.original0 by its Jacobian: ParametrizationList uses it",
    ),
    "recurrent": (
        Recurrent,
        SEQUENCES,
        "recurrent.weight_hh_l0 by its Jacobian: samples one at a time, as vmap can't run the model: ",
    ),
    "branches": (
        Branches,
        VECTORS,
        "readout.weight by its Jacobian: samples one at a time, as vmap can't run the model: ",
    ),
    "one-dimensional convolution": (
        lambda: nn.Sequential(nn.Conv1d(4, 4, 2, groups=2), nn.Flatten(), nn.Linear(8, 2)),
        SEQUENCES,
        None,
    ),
    "group norm": (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(12, 2)), SEQUENCES, None),
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2)), VECTORS, None),
    "batch norm": (lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).eval(), VECTORS, None),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(7, 3, padding_idx=2), nn.Flatten(), nn.Linear(15, 2)),
        TOKENS,
        None,
    ),
    "multiples": (lambda: nn.Sequential(Multiplies(3, 4), nn.Tanh(), Multiplies(4, 2)), VECTORS, None),
    "unused": (Unused, VECTORS, None),
    "tokens first": (TokensFirst, SEQUENCES, None),
    "frames": (Frames, (2, 4, 5), None),
    "no output axis": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)),
        VECTORS,
        None,
    ),
    "transformer": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(3, 1, 4, batch_first=True), nn.Flatten(), nn.Linear(12, 2)
        ).eval(),
        SEQUENCES,
        "0.self_attn.in_proj_weight by its Jacobian: MultiheadAttention uses it",
    ),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop because")  # vmap's, for the weight norm
@pytest.mark.parametrize("case", LEFT)
def test_what_the_layers_leave_is_exact_and_logged(case, caplog, normal):
    make, inputs, message = LEFT[case]
    torch.manual_seed(0)
    model = make().double()
    x = inputs if isinstance(inputs, torch.Tensor) else normal(7, *inputs)
    with caplog.at_level(logging.INFO, "ntk_helpers"):
        kernel = empirical_ntk(model, x[:4], x[4:])
    if message is None:
        assert not caplog.messages
    else:
        assert any(line.startswith(message) for line in caplog.messages)
    expected = sum(by_autograd(model, x[:4], x[4:], "full").values())
    assert_equal_kernels(kernel.reshape(expected.shape), expected)
    if case != "no output axis":
        assert_all_methods_agree(model, x[:4], x[4:])


class Does(nn.Module):
    """Whatever is written down for it, with these modules, parameters and buffers as attributes."""

    def __init__(self, forward, **attributes):
        super().__init__()
        self.does = forward
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.does(self, x)


def parameter(*shape):
    return nn.Parameter(torch.randn(shape))


def lora(self, x):
    w = self.w * 2.0
    w += self.v
    return F.linear(x, w)


def masked(self, x):
    w = self.w * 1.0
    w[0, 0] = 0
    return F.linear(x, w)


def frozen_scale(self, x):
    with torch.no_grad():
        w = self.w * 0.5
    return F.linear(x, w) + F.linear(x, self.v) * self.w.abs().mean().detach()


def branches(self, x):
    h = [torch.tanh(self.a(row)) for row in x.split(1)]
    return torch.cat([self.c(torch.tanh(self.b(row)) if row.sum() < 0 else row) for row in h])


def experts(self, x):
    return torch.cat([(self.a if self.c(row)[0, 0] > 0 else self.b)(row) for row in x.split(1)])


def derivative(self, x):
    return torch.func.vmap(torch.func.grad(lambda z: self.c(torch.tanh(self.a(z))).sum()))(x)


def reversed_gradient(self, x):
    h = self.a(x)
    if h.requires_grad:
        h.register_hook(lambda gradient: -2 * gradient)
    return self.c(torch.tanh(h))


def linear_layers():
    return {"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 2)}


def shared_module():
    layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 2)])
    return Does(lambda self, x: self.head(torch.tanh(self.layers[0](x))), layers=layers, head=layers[1])


TRAPS = {
    "module under two names": shared_module,
    "low rank update in place": lambda: Does(lora, w=parameter(2, 3), v=parameter(2, 3)),
    "multiple masked in place": lambda: Does(masked, w=parameter(2, 3)),
    "multiple without gradient": lambda: Does(frozen_scale, w=parameter(2, 3), v=parameter(2, 3)),
    "one bias for all": lambda: Does(lambda self, x: F.linear(x, self.w, self.v), w=parameter(2, 3), v=parameter(1)),
    "a way that depends on the sample": lambda: Does(branches, **linear_layers()),
    "experts": lambda: Does(experts, **linear_layers()),
    "derivative of a network": lambda: Does(derivative, **linear_layers()),
    "in place on the input": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)),
    "hook on a gradient": lambda: Does(reversed_gradient, **linear_layers()),
    "output that is a parameter": lambda: Does(lambda self, x: self.w + 0 * x[:, :2], w=parameter(2)),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_traps(trap, normal):
    torch.manual_seed(0)
    model, x = TRAPS[trap]().double(), normal(7, 3)
    parameters, inputs = list(model.parameters()), x.clone()
    methods = ["auto", "jacobian"] if trap == "hook on a gradient" else METHODS
    expected = sum(by_autograd(model, inputs.clone(), inputs[:3].clone(), "full").values())
    for method in methods:
        for chunk_size in (None, 2):
            kernel = empirical_ntk(model, x, x[:3], method=method, chunk_size=chunk_size)
            assert_equal_kernels(kernel, expected)
    assert torch.equal(x, inputs)
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))


def test_a_module_under_two_names_is_still_one_module(normal):
    model = shared_module().double()
    linearize(model)(normal(2, 3))
    empirical_ntk(model, normal(2, 3))
    assert model.head is model.layers[1]
    assert model.head.weight.requires_grad
    assert model(normal(2, 3)).requires_grad


def test_attributes_that_hold_results_are_put_back(normal):
    def caches(self, x):
        self.last = self.c(x)
        return self.last

    model = Does(caches, last=None, **linear_layers()).double()
    empirical_ntk(model, normal(2, 3))
    assert model.last is None


def test_inputs_that_have_gradients(normal):
    model, x = MLP(3, 6, 2, 2, seed=0), normal(4, 3).requires_grad_()
    kernel = empirical_ntk(model, x)
    assert not kernel.requires_grad
    torch.testing.assert_close(kernel, empirical_ntk(model, x.detach()), rtol=0, atol=0)


def test_second_derivatives_that_are_wrong_are_refused(normal):
    """In PyTorch 2.13 a layer norm with a bias and no weight has the second derivative zero by its bias."""
    torch.manual_seed(0)
    model = Does(lambda self, x: torch.tanh(F.layer_norm(x, (3,), None, self.bias)), bias=parameter(3)).double()
    x = normal(4, 3)
    assert_all_methods_agree(model, x, x, methods=["auto", "jacobian", "layerwise"])
    with pytest.raises(ValueError, match="<v, J u>"):
        empirical_ntk(model, x, method="vector_product")


class Ensemble(nn.Module):
    """Two linear layers and a PReLU for each of S members."""

    def __init__(self, size):
        super().__init__()
        self.ntk_ensemble_size = size
        self.w, self.slope, self.v = parameter(size, 4, 3), parameter(size, 4), parameter(size, 2, 4)

    def forward(self, x):
        return F.linear(F.prelu(F.linear(x, self.w), self.slope), self.v)


@pytest.mark.parametrize("n", [3, 4])
def test_an_ensemble_that_vmap_differentiates_wrongly(normal, caplog, n):
    """The `prelu` of PyTorch 2.13 again, within a vmap over members: wrong for as many points, an error for others."""
    torch.manual_seed(0)
    model, x = Ensemble(4).double(), normal(n, 3)
    with caplog.at_level(logging.INFO, "ntk_helpers"):
        kernels = empirical_ntk(model, x)
    assert any(message.startswith("members one at a time") for message in caplog.messages)
    for method in ("jacobian", "vector_product"):
        torch.testing.assert_close(empirical_ntk(model, x, method=method), kernels, rtol=1e-12, atol=1e-12)


class Tripled(torch.autograd.Function):
    """Three times its input, with a rule of vmap that is wrong by 1 % for batches of four."""

    @staticmethod
    def forward(x):
        return 3 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return Tripled.apply(gradient)

    @staticmethod
    def vmap(info, in_dims, x):
        return 3.03 * x if info.batch_size == 4 else Tripled.apply(x), in_dims[0]


def test_an_ensemble_that_vmap_runs_nearly_right(normal, caplog):
    class Net(MLP):
        def forward(self, x):
            return Tripled.apply(super().forward(x))

    net, x = Net(3, 8, 1, seeds=range(4)), normal(3, 3)
    with caplog.at_level(logging.INFO, "ntk_helpers"):
        kernels = empirical_ntk(net, x)
    torch.testing.assert_close(kernels, 9 * empirical_ntk(MLP(3, 8, 1, seeds=range(4)), x))
    assert sum(message.startswith("members one at a time") for message in caplog.messages) == 1  # the plain one isn't


def reads_a_gradient():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    model[2].register_full_backward_hook(lambda module, inputs, outputs: tuple(2 * g for g in inputs if g is not None))
    return model


@pytest.mark.parametrize("make", [reads_a_gradient, lambda: Does(reversed_gradient, **linear_layers())])
def test_hooks_on_gradients_have_no_vector_products(normal, make):
    torch.manual_seed(0)
    model, x = make().double(), normal(4, 3)
    assert_equal_kernels(empirical_ntk(model, x, x[:2]), sum(by_autograd(model, x, x[:2], "full").values()))
    for call in (
        lambda: empirical_ntk(model, x, method="vector_product"),
        lambda: ntk_vector_product(model, x, x[:, :2]),
    ):
        with pytest.raises(ValueError, match="expected no hooks on gradients"):
            call()


def test_samples_on_another_axis_of_the_same_size(normal):
    """As many tokens as samples: only the order of the axes tells them apart."""
    torch.manual_seed(0)
    x = normal(4, 4, 3)
    assert_all_methods_agree(TokensFirst().double(), x, x[:1])


def test_prelu_with_as_many_samples_as_outputs(normal):
    """There, `vmap(jacrev(...))` is silently wrong in PyTorch 2.13."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 5)).double()
    x = normal(5, 3)
    assert_all_methods_agree(model, x, x)


def test_layerwise_refuses_what_it_would_have_to_leave(normal):
    message = "inner.weight: used by 2 layers, or calls of one; inner.bias: used by 2"
    with pytest.raises(ValueError, match=message):
        empirical_ntk(Twice().double(), normal(2, 3), method="layerwise")


def test_few_points_against_many_parameters_by_vector_products(caplog, normal):
    model, x = Functional().double(), normal(20, 3)
    model.wide = nn.Parameter(normal(10**6))
    model.register_forward_hook(lambda module, _, out: out + torch.sin(module.wide).mean())
    with caplog.at_level(logging.INFO, "ntk_helpers"):
        few = empirical_ntk(model, x, x[:1])
    assert "wide by vector products: Functional uses it in a way that has no Gram product here" in caplog.messages
    assert_equal_kernels(few, empirical_ntk(model, x, x[:1], method="jacobian"))


@pytest.mark.parametrize("signs", [(1, -1), (-1, 1), (-1, -1)])
def test_vector_products_of_gradients_that_are_zero(signs):
    """A network of positive weights sees no negative inputs: its units are off there."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)).double()
    for p in model.parameters():
        nn.init.uniform_(p, 1, 2)
    x1, x2 = (sign * torch.ones(n, 3, dtype=torch.float64) for n, sign in zip((2, 3), signs, strict=True))
    assert (empirical_ntk(model, x1, x2, method="vector_product") == 0).all()


class DerivedOnce(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0].detach() * _Last.apply(gradient)


class _Last(torch.autograd.Function):
    """The identity, without a derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no derivative")


def test_few_points_where_there_are_no_vector_products(normal, monkeypatch):
    class Net(Functional):
        def forward(self, x):
            return DerivedOnce.apply(super().forward(x))

    monkeypatch.setattr(_methods, "LARGE_JACOBIAN", 1)
    model, x = Net().double(), normal(5, 3)
    assert_equal_kernels(empirical_ntk(model, x, x[:2]), sum(by_autograd(model, x, x[:2], "full").values()))


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("output", ["full", "diagonal", "trace"])
def test_ensembles(normal, output, chunk_size):
    x, options = normal(5, 3), {"output": output, "per_layer": True, "chunk_size": chunk_size}
    ensemble = MLP(3, 6, 2, 2, seeds=[4, 0, 7])
    members = [MLP(3, 6, 2, 2, seed=seed) for seed in (4, 0, 7)]
    for method in [*METHODS, "layerwise"]:
        for x2 in (None, x[:2]):
            kernels = empirical_ntk(ensemble, x, x2, method=method, **options)
            for name, kernel in kernels.items():
                single = [empirical_ntk(member, x, x2, **options)[name] for member in members]
                torch.testing.assert_close(kernel, torch.stack(single), rtol=1e-12, atol=1e-12)


def test_vector_products(normal):
    model, x, v = MLP(3, 6, 2, 2, seeds=[0, 1]), normal(5, 3), normal(2, 5, 2)
    expected = torch.einsum("sijab,sjb->sia", empirical_ntk(model, x), v)
    torch.testing.assert_close(ntk_vector_product(model, x, v), expected, rtol=1e-12, atol=1e-12)
    single = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)).double()
    torch.testing.assert_close(ntk_vector_product(single, x, v[0, :, 0]), empirical_ntk(single, x) @ v[0, :, 0])
    for wrong in (v[0], v[:, :4], v.tolist()):
        with pytest.raises((TypeError, ValueError), match="v: expected"):
            ntk_vector_product(model, x, wrong)


class Counts(nn.Module):
    """Everything a careless caller could leave changed: a buffer it writes to, hooks, gradients, a mode per module."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm, self.readout = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        return self.readout(self.norm(self.inner(x)).relu_())


@pytest.mark.parametrize("method", ["layerwise", "jacobian", "vector_product"])
def test_the_model_is_left_as_it_was(normal, method):
    model, x = Counts().double(), normal(4, 3)
    model.norm.eval()
    model(x).sum().backward()
    model.inner.bias.requires_grad_(False)
    hook = model.inner.register_forward_hook(lambda module, inputs, out: 2 * out)
    calls = model.calls.clone()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    modes, random_state, inputs = [m.training for m in model.modules()], torch.get_rng_state(), x.clone()

    empirical_ntk(model, x, method=method)
    ntk_vector_product(model, x, normal(4, 2))

    assert torch.equal(model.calls, calls)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True, True, True]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(x, inputs)
    assert list(model.inner._forward_hooks) == [hook.id]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_what_surrounds_the_call_does_not_matter(normal, context):
    model, x = MLP(3, 6, 2, 2, seed=0, dtype=torch.float32), normal(4, 3).float()
    expected = empirical_ntk(model, x)
    with context():
        for method in METHODS:
            torch.testing.assert_close(empirical_ntk(model, x, method=method), expected, rtol=1e-5, atol=1e-5)


class Precisions(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(3)), set()

    def forward(self, x):
        backends = torch.backends
        for operation in (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv):
            self.seen.add(operation.fp32_precision)
        return x @ self.weight


def test_full_precision_inside_and_as_before_outside(normal):
    model, operation = Precisions(), torch.backends.cudnn.conv
    assert operation.fp32_precision == "tf32"  # torch's default
    torch.set_float32_matmul_precision("medium")
    try:
        empirical_ntk(model, normal(2, 3).float())
        assert model.seen <= {"ieee", "none"}
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cuda.matmul.allow_tf32
        assert operation.fp32_precision == "tf32"
        with pytest.raises(ValueError, match="x1: expected"):
            empirical_ntk(model, normal(0, 3).float())
        assert operation.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_operations_follow_the_setting_for_all_as_before(normal):
    backends = torch.backends
    try:
        backends.fp32_precision = "tf32"
        empirical_ntk(Precisions(), normal(2, 3).float())
        assert backends.mkldnn.conv.fp32_precision == "tf32"
        backends.fp32_precision = "ieee"
        assert backends.mkldnn.conv.fp32_precision == "ieee"
    finally:
        backends.fp32_precision = "none"
        backends.cudnn.conv.fp32_precision = backends.cudnn.rnn.fp32_precision = "tf32"  # torch's default


class Largest(TorchDispatchMode):
    """The most numbers in any tensor made inside."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and not tensor._is_view():
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("method", ["layerwise", "jacobian", "vector_product"])
def test_memory_follows_the_chunks(normal, method):
    """With 4 of 32 points at a time nothing larger is made than 4 rows of activations or of the Jacobian."""
    width = 2048
    model, x = MLP(2, width, 1, seed=0), normal(32, 2)
    with Largest() as chunked:
        empirical_ntk(model, x, method=method, chunk_size=4)
    with Largest() as whole:
        empirical_ntk(model, x, method=method)
    per_point = 2 * width if method == "jacobian" else width
    assert 32 * 32 <= chunked.numel <= 4 * per_point
    assert whole.numel >= 32 * per_point


@pytest.mark.parametrize("output", ["full", "trace", "diagonal"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_some_outputs_at_a_time(normal, monkeypatch, output, chunk_size):
    """Layers by their Gram products, and a norm by its Jacobian, three outputs at a time or fewer."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4), nn.Tanh(), nn.Linear(4, 7)).double(), normal(5, 3)
    expected = sum(by_autograd(model, x, x[:3], output).values())
    for held in ("HELD", "HELD_IN_FULL"):
        monkeypatch.setattr(_methods, held, 3 * (chunk_size or 5) * (4 + 7))
    assert_all_methods_agree(model, x, x[:3], output, chunk_size=chunk_size)
    assert_equal_kernels(empirical_ntk(model, x, x[:3], output=output, chunk_size=chunk_size), expected)
    symmetric = empirical_ntk(model, x, output=output, chunk_size=chunk_size)
    assert_equal_kernels(symmetric, sum(by_autograd(model, x, x, output).values()))
    ensemble = MLP(3, 6, 2, 7, seeds=[0, 1])
    kernels = empirical_ntk(ensemble, x, output=output, chunk_size=chunk_size)
    for found, seed in zip(kernels, (0, 1), strict=True):
        assert_equal_kernels(found, sum(by_autograd(MLP(3, 6, 2, 7, seed=seed), x, x, output).values()))


@pytest.mark.parametrize("method", ["layerwise", "jacobian"])
def test_memory_does_not_grow_with_the_outputs(normal, monkeypatch, method):
    """Of 512 pixels out, at most as many at once as are allowed: 16 of 2 pictures, or the gradients of them."""
    convolutions = nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1)
    model, x = nn.Sequential(*convolutions, nn.Flatten()).double(), normal(2, 1, 16, 16)
    numbers = (4 + 2) * 16 * 16 if method == "layerwise" else sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(_methods, "HELD", 16 * 2 * numbers)
    with Largest() as largest:
        kernel = empirical_ntk(model, x, output="trace", method=method)
    assert largest.numel <= 9 * 16 * 2 * 4 * 16 * 16  # patches of 9 pixels
    monkeypatch.undo()
    with Largest() as whole:
        assert_equal_kernels(kernel, empirical_ntk(model, x, output="trace", method=method))
    assert whole.numel > largest.numel


@pytest.mark.parametrize("method", ["layerwise", "jacobian"])
def test_memory_of_the_full_kernel_of_many_outputs(normal, monkeypatch, method):
    """Four of 40 outputs at once, on either side: their activations, or rows of the Jacobian, and the weights."""
    model, x = MLP(2, 512, 1, 40, seed=0), normal(2, 2)
    numbers = 512 + 40 if method == "layerwise" else sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(_methods, "HELD_IN_FULL", 4 * 2 * numbers)
    with Largest() as largest:
        kernel = empirical_ntk(model, x, method=method)
    monkeypatch.undo()
    with Largest() as whole:
        assert_equal_kernels(kernel, empirical_ntk(model, x, method=method))
    per_output = 512 if method == "layerwise" else 40 * 512
    assert largest.numel <= max(4 * 2 * per_output, 40 * 512) < whole.numel == 40 * 2 * per_output


@pytest.mark.parametrize("output", ["full", "trace", "diagonal"])
def test_mirrored_in_place(normal, output, monkeypatch):
    monkeypatch.setattr(_gram, "ROWS", 3)
    kernel = normal(2, 40, 40, *{"full": (3, 3), "trace": (), "diagonal": (3,)}[output])
    before = kernel.clone()
    _gram.mirrored(kernel, output)
    flipped = kernel.transpose(1, 2)
    assert torch.equal(kernel, flipped.transpose(3, 4) if output == "full" else flipped)
    for i in range(40):
        assert torch.equal(kernel[:, i, i + 1 :], before[:, i, i + 1 :])
        on_diagonal, was = kernel[:, i, i], before[:, i, i]
        assert torch.equal(on_diagonal.triu(), was.triu()) if output == "full" else torch.equal(on_diagonal, was)


def test_symmetric_kernels_compute_half_the_tiles(normal):
    model, x = MLP(2, 4, 1, seed=0), normal(12, 2)
    calls = []
    model.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    counts = {}
    for x2 in (None, x):
        calls.clear()
        empirical_ntk(model, x, x2, chunk_size=3)
        counts[x2 is None] = len(calls) - 5  # five to probe the model
    assert counts == {True: 4 + 6, False: 4 + 16}  # four chunks of rows, each with the chunks of columns not yet met


def test_float32_is_as_good_as_its_rounding(normal):
    model, x = MLP(10, 256, 3, 2, seed=0), normal(20, 10)
    exact = empirical_ntk(model, x)
    single = empirical_ntk(MLP(10, 256, 3, 2, seed=0, dtype=torch.float32), x.float())
    assert (single - exact).abs().max() < 3e-6 * exact.abs().max()


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.randn(2)


class Counting(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) + self.calls


def with_a_hook():
    model = nn.Linear(3, 2)
    model.weight.register_hook(lambda gradient: 0 * gradient)
    return model


def with_a_plain_reference():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    weight = [model[0].weight]
    model.register_forward_hook(lambda module, inputs, out: out + weight[0].sum())
    return model


INTEGERS, FLOATS = torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (nn.Linear(3, 2), INTEGERS, r"if it takes no torch.int64, convert the inputs, x.to\(dtype\)"),
        (Noisy(3, 2), FLOATS, "model: expected no random numbers to be drawn"),
        (Counting(3, 2), FLOATS, "model: expected the same output at every call"),
        (nn.RNN(3, 2, batch_first=True), torch.ones(2, 4, 3), "model: expected a tensor as output, got tuple"),
        (with_a_hook(), FLOATS, "expected parameters without hooks on their gradients, but weight has one"),
        (with_a_plain_reference(), FLOATS, "expected its parameters to be used as attributes of modules, got 0.weight"),
        (nn.Sequential(nn.Embedding(3, 2, max_norm=0.5), nn.Flatten()), INTEGERS, "an embedding without max_norm"),
        (nn.Sequential(nn.Linear(3, 2), Does(lambda self, x: x + 0j)), FLOATS, "floating-point output, got .*complex"),
    ],
)
def test_refusals(model, x, message):
    state, parameters = torch.get_rng_state(), [p.detach().clone() for p in model.parameters()]
    with pytest.raises((TypeError, ValueError), match=message):
        empirical_ntk(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before) for p, before in zip(model.parameters(), parameters, strict=True))
