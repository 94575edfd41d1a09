"""Which models have a kernel, and which are refused: samples that see each other, and usual spellings that are fine."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_layerwise import Does, assert_equal_kernels, linear_layers, parameter
from torch import nn

from ntk_helpers import MLP, empirical_ntk, jacobian, linearize, ntk_vector_product


def assert_right(model, x, x2=None, methods=("auto", "jacobian", "vector_product")):
    """All methods against autograd on the model as it is, on the whole batch at once."""
    x2 = x[:3] if x2 is None else x2

    def rows(points):
        out, params = model(points), [p for p in model.parameters() if p.requires_grad]
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        every = [torch.autograd.grad(f, params, **options) for f in out.reshape(-1)]
        return torch.stack([torch.cat([g.flatten() for g in row]) for row in every]).reshape(
            len(points), -1, every_size(params)
        )

    expected = torch.einsum("iap,jbp->ijab", rows(x), rows(x2))
    for method in methods:
        kernel = empirical_ntk(model, x, x2, method=method)
        assert_equal_kernels(kernel.reshape(expected.shape), expected)
        trace = empirical_ntk(model, x, x2, method=method, output="trace")
        assert_equal_kernels(trace, expected.diagonal(dim1=2, dim2=3).sum(-1))
    torch.testing.assert_close(jacobian(model, x).reshape(rows(x).shape), rows(x))


def every_size(params):
    return sum(p.numel() for p in params)


def attends_across_the_batch(self, x):
    return self.c(F.scaled_dot_product_attention(*(x.unsqueeze(0),) * 3)[0])


def zero_readout():
    """At its start the output is zero, whatever the batch: only gradients tell."""
    model = Does(lambda self, x: self.c(torch.tanh(self.a(x - x.mean(0)))), **linear_layers())
    for p in model.c.parameters():
        nn.init.zeros_(p)
    return model


SEE_EACH_OTHER = {
    "batch norm as a function": lambda: Does(
        lambda self, x: self.c(F.batch_norm(self.a(x), None, None, training=True)), **linear_layers()
    ),
    "centred": lambda: Does(lambda self, x: self.c(torch.tanh(self.a(x - x.mean(0)))), **linear_layers()),
    "centred at the end": lambda: Does(lambda self, x: self.c(x) - self.c(x).mean(0), **linear_layers()),
    "attention": lambda: Does(attends_across_the_batch, **linear_layers()),
    "causal attention": lambda: Does(
        lambda self, x: self.c(F.scaled_dot_product_attention(*(x[None],) * 3, is_causal=True)[0]), **linear_layers()
    ),
    "a recurrence along the batch": lambda: Does(
        lambda self, x: self.c(self.l(x.unsqueeze(1))[0][:, 0]), l=nn.GRU(3, 3), **linear_layers()
    ),
    "zero readout": zero_readout,
    "decides by the batch": lambda: Does(lambda self, x: self.a(x) if x[-1, 0] > 0.3 else self.b(x), **linear_layers()),
    "spread over the batch": lambda: Does(lambda self, x: self.c(x).softmax(0), **linear_layers()),
    "a mean over the batch": lambda: Does(lambda self, x: self.c(x) / len(x), **linear_layers()),
    "a place in the batch": lambda: Does(
        lambda self, x: self.c(x) * torch.arange(1, len(x) + 1, dtype=x.dtype).unsqueeze(1), **linear_layers()
    ),
    "batch norm": lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)),
    "frozen batch norm": lambda: nn.Sequential(
        nn.Linear(3, 2), nn.BatchNorm1d(2, affine=False, track_running_stats=False)
    ),
    "transposed": lambda: Does(lambda self, x: self.a(x).mT, **linear_layers()),
}


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("case", SEE_EACH_OTHER)
def test_samples_that_see_each_other_are_refused(case, n, normal):
    torch.manual_seed(0)
    model, x = SEE_EACH_OTHER[case]().double(), torch.tensor([[0.4, -0.6, 0.5], [2.0, 0, 1], [-1, 1, 0], [0, 0, 0.3]])
    x = x.double()[:n]
    for call in (
        lambda: empirical_ntk(model, x),
        lambda: jacobian(model, x),
        lambda: ntk_vector_product(model, x, x[:, :2]),
    ):
        with pytest.raises(
            ValueError, match="model: expected an output of each sample by itself, got one that depends on"
        ):
            call()


def squeezes_to_a_sequence(self, x):
    """Alone, a sample's axis is gone, and the softmax would go over the other."""
    return self.c(torch.softmax(self.a(x).squeeze(), -1 if x.shape[0] > 1 else 0))


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.norm, self.readout = nn.Conv2d(1, 4, 3), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        h = F.adaptive_avg_pool2d(torch.relu(self.convolution(x)), 1).squeeze()
        return self.readout(self.norm(h))


class Flattening(Pooled):
    """Cannot run on one sample at all."""

    def forward(self, x):
        h = F.adaptive_avg_pool2d(torch.relu(self.convolution(x)), 1).squeeze()
        return self.readout(h.flatten(1))


class Grokker(nn.Module):
    """Embeds tokens without an `nn.Embedding`."""

    def __init__(self):
        super().__init__()
        self.embed, self.unembed = parameter(6, 11), parameter(6, 3)

    def forward(self, tokens):
        h = torch.einsum("dbp->bpd", self.embed[:, tokens.long()])
        return (torch.tanh(h) @ self.unembed)[:, -1]


def pictures(self, x):
    return self.a(x.double().reshape(len(x), -1, 3) / 255).mean(1)


def vectors(*shape):
    return torch.randn(5, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def integers(high, *shape):
    return torch.randint(0, high, (5, *shape), generator=torch.Generator().manual_seed(1))


def experts(self, x):
    """Each row goes to one of two experts; one may be left without any."""
    to_a, out = self.c(x)[:, 0] > 0, torch.empty_like(x)
    out[to_a], out[~to_a] = self.a(x[to_a]), self.b(x[~to_a])
    return out


FINE = {
    "experts": lambda: (Does(experts, **linear_layers()), vectors(3)),
    "squeezed at the end": lambda: (
        Does(lambda self, x: self.f(torch.tanh(self.a(x))).squeeze(), f=nn.Linear(3, 1), **linear_layers()),
        vectors(3),
    ),
    "squeezed after pooling": lambda: (Pooled(), vectors(1, 6, 6)),
    "squeezed, and no batch of one": lambda: (Flattening(), vectors(1, 6, 6)),
    "tokens": lambda: (Grokker(), integers(11, 4)),
    "tokens as int32": lambda: (Grokker(), integers(11, 4).int()),
    "pictures of bytes": lambda: (Does(pictures, **linear_layers()), integers(256, 4, 3).byte()),
    "one hot": lambda: (Does(lambda self, x: self.a(F.one_hot(x, 3).double()), **linear_layers()), integers(3)),
    "booleans": lambda: (Does(lambda self, x: self.a(x.double()), **linear_layers()), integers(2, 3).bool()),
    "a row of a graph": lambda: (
        Does(lambda self, i: self.a(self.rows)[i], rows=nn.Parameter(vectors(3)), **linear_layers()),
        torch.arange(5),
    ),
    "outputs of two axes": lambda: (
        Does(lambda self, x: self.a(x).reshape(-1, 4, 3), **linear_layers()),
        vectors(4, 3),
    ),
    "pictures out": lambda: (nn.Conv2d(1, 2, 2), vectors(1, 3, 3)),
    "dropout with p = 0": lambda: (
        nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.0), nn.Tanh(), nn.Linear(4, 2)),
        vectors(3),
    ),
    "batch norm unused": lambda: (
        Does(lambda self, x: self.c(x), norm=nn.BatchNorm1d(3), drop=nn.Dropout(), **linear_layers()),
        vectors(3),
    ),
    "batch norm of weights": lambda: (
        Does(lambda self, x: F.linear(x, F.batch_norm(self.w[None], None, None, training=True)[0]), w=parameter(2, 3)),
        vectors(3),
    ),
    "instance norm": lambda: (
        nn.Sequential(nn.Conv1d(2, 3, 2), nn.InstanceNorm1d(3, affine=True), nn.Flatten(), nn.Linear(12, 2)),
        vectors(2, 5),
    ),
    "zero at the start": lambda: (MLP(3, 8, 1, 2, seed=0, antisymmetric=True), vectors(3)),
}


@pytest.mark.parametrize("case", FINE)
def test_usual_spellings(case):
    torch.manual_seed(0)
    model, x = FINE[case]()
    model.double()
    if case == "squeezed after pooling":  # a layer norm over one axis is the same with and without the batch's
        assert empirical_ntk(model, x[:1]).shape == (1, 1, 3, 3)
    assert_right(model, x)


class Burgers(nn.Module):
    """(u, u_t + u u_x - 0.01 u_xx), u itself before its derivatives or after."""

    def __init__(self, u_first):
        super().__init__()
        self.u, self.u_first = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)), u_first

    def forward(self, z):
        def scalar(point):
            return self.u(point[None])[0, 0]

        u = self.u(z)[:, 0] if self.u_first else None
        g, h = torch.func.vmap(torch.func.grad(scalar))(z), torch.func.vmap(torch.func.hessian(scalar))(z)
        u = self.u(z)[:, 0] if u is None else u
        return torch.stack([u, g[:, 1] + u * g[:, 0] - 0.01 * h[:, 0, 0]], 1)


class Tangent(nn.Module):
    """A derivative along the inputs by dual numbers, which are no transform of torch.func."""

    def __init__(self):
        super().__init__()
        self.u = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, z):
        with torch.autograd.forward_ad.dual_level():
            u = self.u(torch.autograd.forward_ad.make_dual(z, torch.ones_like(z)))
            return torch.cat(torch.autograd.forward_ad.unpack_dual(u)[:2], 1)


@pytest.mark.parametrize("make", [lambda: Burgers(True), lambda: Burgers(False), Tangent])
def test_a_network_and_its_derivatives(make):
    torch.manual_seed(0)
    # vmap has no rule for dual numbers, unless the tensors have gradients.
    methods = ["auto", "jacobian", *(["vector_product"] if make is not Tangent else [])]
    assert_right(make().double(), vectors(2), methods=methods)


class InLowPrecision(nn.Module):
    def __init__(self, autocast):
        super().__init__()
        self.net, self.autocast = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 3)), autocast

    def forward(self, x):
        if not self.autocast:
            return self.net(x).float()
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return self.net(x).float()


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_low_precision_inside(autocast, seed, normal):
    """A few units in the last place of bfloat16, of 8 bits; what would be right is the same in float64."""
    torch.manual_seed(seed)
    model = InLowPrecision(autocast)
    model = model if autocast else model.bfloat16()
    x = normal(4, 5).to(torch.float32 if autocast else torch.bfloat16)
    kernel = empirical_ntk(model, x, output="trace").double()
    right = empirical_ntk(model.net.double(), x.double(), output="trace")
    assert (kernel - right).abs().max() < 0.05 * right.abs().max()


def test_a_model_that_changes_in_its_last_bits(normal):
    def changes(self, x):
        self.calls += 1
        return self.c(x) * (1 + 1e-15 * self.calls)

    with pytest.raises(ValueError, match="the same output at every call"):
        empirical_ntk(Does(changes, calls=0, **linear_layers()).double(), normal(2, 3))


@pytest.mark.parametrize("method", ["auto", "jacobian", "vector_product"])
def test_results_that_are_not_finite_are_an_error(method, normal):
    """The root of zero, of a blank sample; and 1,000 inputs of size 100, whose Gram matrix float16 does not hold."""
    model = Does(
        lambda self, x: self.c(self.a(x).square().sum(1, keepdim=True).sqrt().expand(-1, 3)), **linear_layers()
    )
    model.a.bias = None
    x = normal(4, 3)
    x[2] = 0
    with pytest.raises(ValueError, match=r"NaN or infinity for sample 2 of x1; .* a root or norm at zero"):
        empirical_ntk(model.double(), x, method=method)
    with pytest.raises(ValueError, match="NaN or infinity for sample 2 of x;"):
        jacobian(model, x)
    with pytest.raises(ValueError, match="NaN or infinity for sample 2 of x2"):
        empirical_ntk(model, x[:2], x, method=method)
    wide, big = nn.Linear(1000, 1).half(), 10 * torch.ones(3, 1000).half()
    with pytest.raises(ValueError, match=r"where torch.float16 overflows, call .double\(\) on model and inputs"):
        empirical_ntk(wide, big)
    with pytest.raises(ValueError, match=r"finite outputs.* if torch.float16 overflows, call model.double\(\)"):
        empirical_ntk(
            Does(lambda self, x: self.c(x) + 1e4 * x.sum(1, keepdim=True), **linear_layers()).half(),
            9 * torch.ones(2, 3).half(),
        )


def quantized():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    model[0] = torch.ao.nn.quantized.dynamic.Linear(3, 2)
    return model


def compiled():
    class OptimizedModule(nn.Linear):
        """Stands for that of torch.compile, whose import takes seconds."""

    return OptimizedModule(3, 2)


ONES = torch.ones(2, 3)
REFUSED = {
    "DataParallel": (lambda: nn.DataParallel(nn.Linear(3, 2)), ONES, "the model is a DataParallel; pass model.module"),
    "TorchScript": (
        lambda: torch.jit.trace(nn.Linear(3, 2), ONES),
        ONES,
        "pass the torch.nn.Module that it was made from",
    ),
    "quantized": (quantized, ONES, "0 is a Linear; pass the floating-point model that was quantized"),
    "compiled": (compiled, ONES, "pass what was compiled, model._orig_mod"),
    "lazy": (lambda: nn.LazyLinear(2), ONES, "weight is lazy; call the model on x once"),
    "sparse embedding": (
        lambda: nn.Sequential(nn.Embedding(3, 2, sparse=True), nn.Flatten()),
        ONES.long(),
        "set module.sparse = False",
    ),
    "sparse bag": (lambda: nn.EmbeddingBag(3, 2, sparse=True), ONES.long(), "set module.sparse = False"),
    "complex": (lambda: nn.Linear(3, 2, dtype=torch.complex64), ONES, "torch.view_as_complex inside the model"),
    "complex inputs": (lambda: nn.Linear(3, 2), ONES + 0j, "x1: expected a floating-point dtype, .*view_as_real"),
    "sparse inputs": (lambda: nn.Linear(3, 2), ONES.to_sparse(), r"x1: expected a dense tensor.*x1.to_dense\(\)"),
    "array": (lambda: nn.Linear(3, 2), np.ones((2, 3)), "got ndarray; torch.as_tensor makes one"),
    "dict in": (lambda: nn.Linear(3, 2), {"x": ONES}, "got dict; wrap the model in one that takes a single tensor"),
    "dict out": (
        lambda: Does(lambda self, x: {"y": self.a(x)}, **linear_layers()),
        ONES,
        "got dict; wrap the model in one that returns the tensor meant",
    ),
    "no rows": (
        lambda: Does(lambda self, x: self.a(x).sum(), **linear_layers()),
        ONES,
        r"a row for each sample, got \(\)",
    ),
    "graph": (
        lambda: Does(lambda self, x: torch.ones(7, 7) @ self.a(x), **linear_layers()),
        torch.ones(7, 3),
        r"the model return net\(rows\)\[index\]",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_what_to_do(case):
    make, x, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=message):
        empirical_ntk(make(), x)


def test_bags_of_embeddings():
    torch.manual_seed(0)
    model = Does(lambda self, x: self.c(torch.tanh(self.e(x))), e=nn.EmbeddingBag(7, 3), **linear_layers()).double()
    with pytest.warns(UserWarning, match="There is a performance drop"):
        assert_right(model, integers(7, 4), methods=("auto", "jacobian"))


def test_a_compiled_module_runs_as_written(normal):
    """`Module.compile` leaves the class as it is; nothing is compiled here, since the model is never called outside."""
    model, x = nn.Linear(3, 2).double(), normal(4, 3)
    expected = empirical_ntk(model, x)
    model.compile(backend="eager")
    compiled_call = model._compiled_call_impl
    assert torch.equal(empirical_ntk(model, x), expected)
    torch.testing.assert_close(linearize(model)(x), model.forward(x))
    assert model._compiled_call_impl is compiled_call


def test_another_default_device(normal):
    model, x = MLP(3, 8, 1, 2, seed=0), normal(4, 3)
    v, linear = normal(4, 2), linearize(model)

    def results():
        kernels = [empirical_ntk(model, x, method=method) for method in ("auto", "jacobian", "vector_product")]
        return [*kernels, jacobian(model, x), ntk_vector_product(model, x, v), linear(x), linearize(model)(x)]

    expected = results()
    torch.set_default_device("meta")
    try:
        found = results()
    finally:
        torch.set_default_device(None)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("number", [np.int64(2), np.int32(2), torch.tensor(2), np.array(2)])
def test_integers_of_any_kind(number, normal):
    model, x = MLP(3, 8, 1, 2, seed=0), normal(5, 3)
    assert torch.equal(empirical_ntk(model, x, chunk_size=number), empirical_ntk(model, x, chunk_size=2))
    assert torch.equal(jacobian(model, x, chunk_size=number), jacobian(model, x, chunk_size=2))


@pytest.mark.parametrize(
    "other", [True, np.bool_(True), torch.tensor(True), 2.0, np.float64(2), torch.tensor(2.0), "2"]
)
def test_other_things_are_no_integers(other, normal):
    with pytest.raises(TypeError, match="chunk_size: expected an int, got"):
        empirical_ntk(nn.Linear(3, 2).double(), normal(4, 3), chunk_size=other)


def test_an_attribute_that_only_sounds_like_an_ensemble(normal):
    model, x = Does(lambda self, x: self.c(torch.relu(self.a(x))), **linear_layers()).double(), normal(4, 3)
    expected = empirical_ntk(model, x)
    model.ensemble_size = 3
    assert torch.equal(empirical_ntk(model, x), expected)
    assert (MLP(3, 4, 1, seeds=[0, 1]).ensemble_size, MLP(3, 4, 1, seed=0).ensemble_size) == (2, None)


def test_an_ensemble_with_outputs_of_two_axes(normal):
    class Pictures(nn.Module):
        def __init__(self, weights):
            super().__init__()
            self.ntk_ensemble_size, self.w = 2, nn.Parameter(weights)

        def forward(self, x):
            return torch.tanh(x @ self.w.mT).unflatten(-1, (2, 3))

    weights, x = normal(2, 6, 3), normal(4, 3)
    kernels = empirical_ntk(Pictures(weights), x)
    assert kernels.shape == (2, 4, 4, 6, 6)
    for w, kernel in zip(weights, kernels, strict=True):
        single = Does(lambda self, x: torch.tanh(x @ self.w.mT), w=nn.Parameter(w))
        torch.testing.assert_close(kernel, empirical_ntk(single, x))
    v = normal(2, 4, 2, 3)
    expected = torch.einsum("sijab,sjb->sia", kernels, v.flatten(2)).reshape(v.shape)
    torch.testing.assert_close(ntk_vector_product(Pictures(weights), x, v), expected)
