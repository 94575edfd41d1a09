"""Linearizations of models as they are written: outputs of any kind, any mode, any layer."""

import pytest
import torch
from test_layerwise import Does, linear_layers, parameter
from torch import nn

from ntk_helpers import empirical_ntk, linearize, ntk_vector_product


def move(model, normal):
    """Change the trainable parameters at random; return by how much, by name."""
    moving = {name: p for name, p in model.named_parameters() if p.requires_grad}
    change = {name: normal(*p.shape) for name, p in moving.items()}
    with torch.no_grad():
        for name, p in moving.items():
            p.add_(change[name])
    return change


def expansion(model, x, change, pick=lambda out: out):
    """f + J change, by one reverse pass for every number in the output."""
    params, out = dict(model.named_parameters()), pick(model(x))
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    rows = [torch.autograd.grad(f, [params[name] for name in change], **options) for f in out.reshape(-1)]
    moved = [sum((g * c).sum() for g, c in zip(row, change.values(), strict=True)) for row in rows]
    return out.detach() + torch.stack(moved).reshape(out.shape)


class PINN(nn.Module):
    """u_t - 0.3 u_xx + u u_x, by automatic differentiation inside."""

    def __init__(self, inside):
        super().__init__()
        self.u, self.inside = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)), inside

    def forward(self, z):
        z = z.requires_grad_() if self.inside else z
        u = self.u(z)
        g = torch.autograd.grad(u, z, torch.ones_like(u), create_graph=True)[0]
        h = torch.autograd.grad(g[:, :1], z, torch.ones_like(u), create_graph=True)[0]
        return g[:, 1:] - 0.3 * h[:, :1] + u * g[:, :1]


class Bytes(torch.autograd.Function):
    """The square, without forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


def normed(norm):
    model = nn.Sequential(norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)).double()
    model(torch.ones(2, 3, dtype=torch.float64))
    return model.eval()


def writes(self, x):
    self.calls += 1
    self.last.copy_(self.c(x).detach()[0])
    return self.c(torch.tanh(self.a(x)))


def slashes():
    model = Does(lambda self, x: x @ getattr(self, "w/a") + getattr(self, "w/a").square().sum())
    model.register_parameter("w/a", parameter(3, 2))
    model.w = Does(None, a=parameter(1))
    return model


MODELS = {
    "weight norm, old": lambda: normed(nn.utils.weight_norm),
    "spectral norm, old": lambda: normed(nn.utils.spectral_norm),
    "weight norm": lambda: normed(nn.utils.parametrizations.weight_norm),
    "spectral norm": lambda: normed(nn.utils.parametrizations.spectral_norm),
    "writes to buffers": lambda: Does(
        writes, calls=nn.Buffer(torch.zeros((), dtype=torch.int64)), last=nn.Buffer(torch.zeros(2)), **linear_layers()
    ),
    "slashes in names": slashes,
    "no forward mode": lambda: Does(lambda self, x: self.c(Bytes.apply(self.a(x))), **linear_layers()),
    "a recurrent layer": lambda: Does(
        lambda self, x: self.l(x.unsqueeze(2))[0][:, -1], l=nn.LSTM(1, 3, batch_first=True)
    ),
    "outputs of two axes": lambda: Does(lambda self, x: torch.tanh(self.a(x)).unsqueeze(1), **linear_layers()),
    "dropout and batch norm": lambda: nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)
    ).eval(),
    "an embedding": lambda: Does(
        lambda self, x: self.c(self.e(x.abs().long() % 5).mean(1)), e=nn.Embedding(5, 3), **linear_layers()
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated", "ignore:There is a performance drop because")
@pytest.mark.parametrize("case", MODELS)
def test_is_the_expansion(case, normal):
    torch.manual_seed(0)
    model, x = MODELS[case]().double(), normal(4, 3)
    linear = linearize(model)
    before = {name: value.clone() for name, value in linear.state_dict().items()}
    torch.testing.assert_close(linear(x), model(x))
    for name, value in linear.state_dict().items():
        assert torch.equal(value, before[name])
    change = {name.removeprefix("model."): value for name, value in move(linear, normal).items()}
    expected = expansion(model, x, change)
    torch.testing.assert_close(linear(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(linear(x), expected)
    out = linear(x)
    gradients = torch.autograd.grad(out.square().sum(), list(linear.parameters()), allow_unused=True)
    ours = empirical_ntk(model, x)
    assert any(g is not None for g in gradients)
    torch.testing.assert_close(empirical_ntk(linear, x), ours)


@pytest.mark.parametrize("inside", [True, False])
def test_of_a_residual(inside, normal):
    torch.manual_seed(0)
    model, z = PINN(inside).double(), normal(4, 2)
    z = z if inside else z.requires_grad_()
    kernel, v = empirical_ntk(model, z), normal(4, 1)
    rows = [
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(
                    f, list(model.parameters()), retain_graph=True, materialize_grads=True, allow_unused=True
                )
            ]
        )
        for f in model(z.detach().clone().requires_grad_()).flatten()
    ]
    right = torch.stack(rows) @ torch.stack(rows).T
    assert not kernel.requires_grad
    torch.testing.assert_close(kernel[:, :, 0, 0], right)
    torch.testing.assert_close(empirical_ntk(model, z, method="vector_product")[:, :, 0, 0], right)
    product = ntk_vector_product(model, z, v)
    assert not product.requires_grad
    torch.testing.assert_close(product, right @ v)
    linear = linearize(model)
    change = {name.removeprefix("model."): value for name, value in move(linear, normal).items()}
    expected = expansion(model, z.detach().clone().requires_grad_(), change)
    torch.testing.assert_close(linear(z.detach().clone().requires_grad_(not inside)), expected)
    torch.testing.assert_close(empirical_ntk(linear, z)[:, :, 0, 0], right)


def tuples(self, x):
    h = torch.tanh(self.a(x))
    return h, {"logits": self.c(h), "label": self.c(h).argmax(1), "size": len(x), "none": None}, [self.b(h)]


@pytest.mark.parametrize("reverse", [False, True])
def test_tuples_lists_and_dicts(reverse, normal):
    torch.manual_seed(0)
    model, x = Does(tuples, **linear_layers()).double(), normal(4, 3)
    linear = linearize(model)
    linear.forward_mode = not reverse
    change = {name.removeprefix("model."): value for name, value in move(linear, normal).items()}
    out = linear(x)
    torch.testing.assert_close(out[0], expansion(model, x, change, lambda out: out[0]))
    torch.testing.assert_close(out[1]["logits"], expansion(model, x, change, lambda out: out[1]["logits"]))
    torch.testing.assert_close(out[2][0], expansion(model, x, change, lambda out: out[2][0]))
    assert torch.equal(out[1]["label"], model(x)[1]["label"])
    assert (out[1]["size"], out[1]["none"]) == (4, None)
    assert out[1]["logits"].requires_grad


def test_other_outputs_are_refused(normal):
    model = Does(lambda self, x: {self.a(x)}, **linear_layers()).double()
    with pytest.raises(TypeError, match="tuples, lists and dicts of them as output, got set; wrap the model"):
        linearize(model)(normal(2, 3))


def test_stays_in_its_mode(normal):
    net = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 1)).double().eval()
    linear, x = linearize(net), normal(4, 3)
    for _ in range(2):
        assert torch.equal(linear.train()(x), linear(x))
        torch.testing.assert_close(linear(x), net(x))
    assert linear.training
    assert not linear.eval().training
    for layer in (nn.Dropout(), nn.BatchNorm1d(3)):
        with pytest.raises(ValueError, match=f"got 0, a {type(layer).__name__} in training mode; call model.eval"):
            linearize(nn.Sequential(layer, nn.Linear(3, 2)))
    linearize(nn.Sequential(nn.Dropout(0.0), nn.Linear(3, 2)))


def test_an_error_of_the_model_is_its_own(normal):
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        linearize(nn.Linear(3, 2).double())(normal(4, 2))


@pytest.mark.parametrize("reverse", [False, True])
def test_derivatives_that_are_not_finite_are_an_error(reverse, normal):
    root = Does(lambda self, x: self.a(x).square().sum(1).sqrt(), a=nn.Linear(3, 4, bias=False)).double()
    linear, x = linearize(root), normal(4, 3)
    linear.forward_mode = not reverse
    torch.testing.assert_close(linear(x), root(x))
    x[2] = 0
    with pytest.raises(ValueError, match="expected finite derivatives, got 1 NaN or infinite of 4"):
        linear(x)
    with torch.no_grad():
        linear.model.a.weight[0, 0] = torch.inf
    assert not linear(x).isfinite().all()  # as of a network whose training has diverged
