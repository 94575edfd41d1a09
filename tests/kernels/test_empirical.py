import json

import pytest
import torch
from torch import nn

from ntk_helpers import MLP, empirical_ntk, jacobian, linearize

ACTIVATIONS = {"Relu": "relu", "Erf": "erf", "Gelu": "gelu"}


def reference_network(reference, case):
    """The stored network, in our class: weights there are (fan_in, fan_out)."""
    config = json.loads(str(reference[f"emp{case}_config"]))
    d_in, *hidden, d_out = config["sizes"]
    net = MLP(
        d_in,
        hidden[0],
        len(hidden),
        d_out,
        activation=ACTIVATIONS[config["act"]],
        w_std=config["W_std"],
        b_std=config["b_std"],
        seed=0,
    )
    with torch.no_grad():
        for layer in range(len(hidden) + 1):
            net.weights[layer].copy_(torch.from_numpy(reference[f"emp{case}_W{layer}"].T))
            net.biases[layer].copy_(torch.from_numpy(reference[f"emp{case}_b{layer}"][0]))
    return net


@pytest.mark.parametrize("case", [0, 1, 2])
def test_against_the_reference(reference, case):
    net = reference_network(reference, case)
    x1, x2, f1, theta = (torch.from_numpy(reference[f"emp{case}_{key}"]) for key in ("X1", "X2", "f1", "ntk"))
    torch.testing.assert_close(net(x1), f1, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(empirical_ntk(net, x1, x2), theta, rtol=1e-12, atol=1e-12)
    mean_over_outputs = torch.from_numpy(reference[f"emp{case}_ntk_trace"])
    trace = empirical_ntk(net, x1, x2, output="trace")
    torch.testing.assert_close(trace / f1.shape[1], mean_over_outputs, rtol=1e-12, atol=1e-12)


def test_jacobian_against_finite_differences(normal):
    net, x, step = MLP(2, 4, 1, 3, activation="tanh", seed=0), normal(5, 2), 1e-6
    j, column = jacobian(net, x), 0
    assert j.shape == (5, 3, 2 * 4 + 4 + 4 * 3 + 3)
    for p in net.parameters():
        for entry in p.data.view(-1).unbind():
            values = []
            for sign in (1, -2, 1):
                entry += sign * step
                values.append(net(x).detach())
            torch.testing.assert_close((values[0] - values[1]) / (2 * step), j[..., column], rtol=1e-7, atol=1e-8)
            column += 1


def test_outputs_agree_with_the_full_kernel(normal):
    net, x1, x2 = MLP(3, 8, 2, 4, seed=0), normal(5, 3), normal(2, 3)
    full = empirical_ntk(net, x1, x2)
    assert full.shape == (5, 2, 4, 4)
    diagonal = full.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(empirical_ntk(net, x1, x2, output="diagonal"), diagonal)
    torch.testing.assert_close(empirical_ntk(net, x1, x2, output="trace"), diagonal.sum(-1))


@pytest.mark.parametrize("output", ["full", "trace", "diagonal"])
def test_symmetric_input_gives_an_exactly_symmetric_kernel(normal, output):
    net, x = MLP(3, 32, 2, 2, seed=0), normal(17, 3)
    theta = empirical_ntk(net, x, output=output)
    torch.testing.assert_close(theta, empirical_ntk(net, x, x, output=output))
    swapped = theta.permute(1, 0, 3, 2) if output == "full" else theta.transpose(0, 1)
    assert torch.equal(theta, swapped)
    if output == "trace":
        assert torch.linalg.eigvalsh(theta)[0] > -1e-12 * theta.abs().max()


@pytest.mark.parametrize("chunk_size", [1, 3, 5, 100])
def test_chunks_change_nothing(normal, chunk_size):
    net, x1, x2 = MLP(3, 8, 1, 2, seed=0), normal(7, 3), normal(5, 3)
    torch.testing.assert_close(empirical_ntk(net, x1, x2, chunk_size=chunk_size), empirical_ntk(net, x1, x2))


def test_ensemble_stacks_its_members(normal):
    x1, x2, seeds = normal(4, 3), normal(2, 3), [3, 1]
    ensemble = MLP(3, 8, 2, 2, seeds=seeds)
    singles = [MLP(3, 8, 2, 2, seed=seed) for seed in seeds]
    torch.testing.assert_close(
        empirical_ntk(ensemble, x1, x2), torch.stack([empirical_ntk(net, x1, x2) for net in singles])
    )
    torch.testing.assert_close(jacobian(ensemble, x1), torch.stack([jacobian(net, x1) for net in singles]))


class WithoutOutputAxis(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = MLP(3, 8, 1, seed=0)

    def forward(self, x):
        return self.net(x).squeeze(-1)


@pytest.mark.parametrize("output", ["full", "trace", "diagonal"])
def test_model_without_an_output_axis(normal, output):
    x, model = normal(4, 3), WithoutOutputAxis()
    assert jacobian(model, x).ndim == 2
    torch.testing.assert_close(empirical_ntk(model, x, output=output), empirical_ntk(model.net, x, output="trace"))


def test_frozen_parameters_are_left_out(normal):
    net, x = MLP(3, 8, 1, seed=0), normal(4, 3)
    j = jacobian(net, x)
    net.weights[0].requires_grad_(False)
    torch.testing.assert_close(jacobian(net, x), j[..., 24:])


def test_shared_parameters_count_once(normal):
    """f(x) = w (w x): the derivative is 2 w x, of both uses together."""
    layer, x = nn.Linear(1, 1, bias=False, dtype=torch.float64), normal(4, 1)
    theta = empirical_ntk(nn.Sequential(layer, layer), x, output="trace")
    torch.testing.assert_close(theta, (2 * layer.weight.item()) ** 2 * x @ x.T)


def test_modules_of_torch_and_state_left_as_it_was(normal):
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(48, 2))
    net = net.double().eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = normal(3, 1, 6, 6)
    theta = empirical_ntk(net, x)
    rows = [torch.autograd.grad(f, net.parameters(), retain_graph=True) for f in net(x).flatten()]
    j = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    torch.testing.assert_close(theta.permute(0, 2, 1, 3).reshape(6, 6), j @ j.T)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def move(model, normal):
    """Change all trainable parameters at random; return by how much, as one vector."""
    moving = [p for p in model.parameters() if p.requires_grad]
    change = [normal(*p.shape) for p in moving]
    with torch.no_grad():
        for p, c in zip(moving, change, strict=True):
            p.add_(c)
    return torch.cat([c.flatten() for c in change])


class TestLinearize:
    def test_is_the_taylor_expansion(self, normal):
        net, x = MLP(3, 8, 2, 2, activation="tanh", seed=0), normal(4, 3)
        linear = linearize(net)
        torch.testing.assert_close(linear(x), net(x))
        change = move(linear, normal)
        torch.testing.assert_close(linear(x), net(x) + jacobian(net, x) @ change)

    def test_keeps_the_kernel_and_leaves_the_model_alone(self, normal):
        net, x = MLP(3, 8, 2, seeds=[0, 1]), normal(4, 3)
        linear, before = linearize(net), net(x)
        theta = empirical_ntk(net, x)
        move(linear, normal)
        torch.testing.assert_close(empirical_ntk(linear, x), theta)
        assert torch.equal(net(x), before)

    def test_is_exact_for_a_linear_model(self, normal):
        net, x = MLP(3, 1, 0, seed=0), normal(4, 3)
        linear = linearize(net)
        with torch.no_grad():
            for model in (net, linear):
                for p in model.parameters():
                    p.mul_(-2.0).add_(1.0)
        torch.testing.assert_close(linear(x), net(x))

    def test_with_buffers_tied_and_frozen_parameters(self, normal):
        tied = nn.Linear(3, 3, dtype=torch.float64)
        net = nn.Sequential(tied, nn.BatchNorm1d(3, dtype=torch.float64), nn.Tanh(), tied).eval()
        net[1].running_mean.copy_(normal(3))
        net[1].bias.requires_grad_(False)
        linear, x = linearize(net), normal(4, 3)
        change = move(linear, normal)
        torch.testing.assert_close(linear(x), net(x) + jacobian(net, x) @ change)

    def test_attention(self, normal):
        """The fused attention has no forward mode, nor has what replaces the layer where nothing is recorded."""
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dtype=torch.float64)
        net, x = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 2, dtype=torch.float64)).eval(), normal(5, 3, 4)
        linear = linearize(net)
        with torch.no_grad():
            torch.testing.assert_close(linear(x), net(x))
            change = move(linear, normal)
            torch.testing.assert_close(linear(x), net(x) + jacobian(net, x) @ change)

    def test_survives_a_change_of_dtype(self, normal):
        linear, x = linearize(MLP(3, 8, 1, seed=0)), normal(4, 3)
        expected = linear(x)
        torch.testing.assert_close(linear.float()(x.float()), expected.float())


class Wrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x):
        return (self.w * x).unsqueeze(0)


NET = MLP(3, 4, 1, seed=0)
X = torch.ones(2, 3, dtype=torch.float64)
BROKEN = MLP(3, 4, 1, seed=0)
BROKEN.weights[0].data[0, 0] = torch.nan


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((NET, X.tolist()), {}, "x1: expected a torch.Tensor, got list"),
        ((NET, X.float()), {}, "x1: expected torch.float64, the dtype of the parameters, got torch.float32"),
        ((NET, X, X.float()), {}, "x2: expected torch.float64"),
        ((NET, X.to("meta")), {}, "x1: expected device cpu, that of the parameters, got meta"),
        ((NET, X * torch.nan), {}, "x1: expected finite values, got 6 NaN or infinite of 6"),
        ((NET, X, X / 0), {}, "x2: expected finite values"),
        ((NET, X[:0]), {}, r"x1: expected shape \(n, ...\) with n > 0, got \(0, 3\)"),
        ((NET, X, X[:, :2]), {}, r"x2: expected shape \(n2, 3\), got \(2, 2\)"),
        ((NET, X), {"output": "sum"}, "output: expected one of .*got 'sum'"),
        ((NET, X), {"chunk_size": 0}, "chunk_size: expected at least 1, got 0"),
        ((NET, X), {"chunk_size": 2.0}, "chunk_size: expected an int, got float"),
        ((torch.relu, X), {}, "model: expected a torch.nn.Module, got builtin_function_or_method"),
        ((nn.ReLU(), X), {}, "model: expected trainable parameters, got none"),
        (
            (nn.Sequential(nn.Linear(3, 2), nn.Dropout()).double(), X),
            {},
            "got some by 1, a Dropout in training mode; call model.eval\\(\\)",
        ),
        (
            (nn.BatchNorm1d(3).double(), X),
            {},
            r"samples in the batch.*BatchNorm1d in training mode; call model.eval\(\)",
        ),
        (
            (nn.BatchNorm1d(3, track_running_stats=False).double().eval(), X),
            {},
            "samples in the batch.*BatchNorm1d without running statistics; keep track_running_stats=True",
        ),
        ((BROKEN, X), {}, "parameter weights.0: expected finite values, got 1 NaN or infinite of 12"),
        ((MLP(3, 4, 1, seeds=[0, 1], activation=nn.PReLU(dtype=torch.float64)), X), {}, "expected a leading axis of 2"),
        ((NET, X[:, :2]), {}, r"got on 2: x: expected shape \(n, 3\), got \(2, 2\)"),
        ((Wrong(), X), {}, r"model: expected output \(n, ...\), a row for each sample, got \(1, 3, 3\) for n = 3"),
    ],
)
def test_refusals(arguments, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        empirical_ntk(*arguments, **options)
