import copy
import functools
import gc
import math
import multiprocessing
import pickle
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ntk_helpers import (
    MLP,
    DivergenceError,
    distance_moved,
    empirical_ntk,
    flatten_outputs,
    gradient_flow,
    linearize,
    log_spaced_steps,
    max_learning_rate,
    train,
)
from ntk_helpers._utils.progress import progress_bar
from ntk_helpers.dynamics import _descent, training
from ntk_helpers.models import ACTIVATIONS


@pytest.fixture
def data(normal):
    return normal(10, 3), normal(10, 2)


def test_one_step_is_gradient_descent_on_half_the_mean_square(data):
    x, y = data
    net = MLP(3, 8, 1, 2, seed=0)
    loss = nn.functional.mse_loss(net(x), y) / 2
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    expected = [p - 0.3 * g for p, g in zip(net.parameters(), gradients, strict=True)]
    record = train(net, x, y, learning_rate=0.3, steps=1)
    torch.testing.assert_close(list(net.parameters()), expected)
    torch.testing.assert_close(record.loss[0], loss.detach())
    torch.testing.assert_close(record.loss[1], nn.functional.mse_loss(net(x), y).detach() / 2)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_against_the_optimizer_of_torch(data, momentum):
    x, y = data
    ours, theirs = MLP(3, 8, 2, 2, seed=0), MLP(3, 8, 2, 2, seed=0)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=momentum)
    for _ in range(50):
        optimizer.zero_grad()
        (nn.functional.mse_loss(theirs(x), y) / 2).backward()
        optimizer.step()
    train(ours, x, y, learning_rate=0.05, steps=50, momentum=momentum)
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-10, atol=1e-12)


def test_members_of_an_ensemble_train_as_single_networks(data):
    x, y = data
    ensemble = MLP(3, 16, 2, 2, seeds=[5, 7])
    losses = train(ensemble, x, y, learning_rate=0.5, steps=20).loss
    assert losses.shape == (21, 2)
    for s, seed in enumerate([5, 7]):
        single = MLP(3, 16, 2, 2, seed=seed)
        loss = train(single, x, y, learning_rate=0.5, steps=20).loss
        torch.testing.assert_close(losses[:, s], loss)
        torch.testing.assert_close(ensemble(x)[s], single(x))


@pytest.mark.parametrize("start", [{"seed": 0}, {"seeds": [0, 1]}])
def test_linear_model_follows_the_powers_of_its_kernel(data, start):
    """After k steps the residual is (1 - eta K / (n C))^k times the first one, exactly."""
    x, y = data
    model = linearize(MLP(3, 8, 1, 2, activation="tanh", **start))
    f0, theta = model(x).detach(), empirical_ntk(model, x)
    gram = flatten_outputs(theta)
    rate = 0.9 * max_learning_rate(gram).min().item()
    train(model, x, y, learning_rate=rate, steps=50)
    power = torch.linalg.matrix_power(torch.eye(20) - rate * gram / 20, 50)
    residual = (power @ (f0 - y).flatten(-2).unsqueeze(-1)).reshape(f0.shape)
    torch.testing.assert_close(model(x).detach(), y + residual, rtol=1e-10, atol=1e-10)


def test_wide_network_follows_the_flow_of_its_kernel(data, normal):
    (x, y), x_test = data, normal(4, 3)
    net = MLP(3, 8192, 1, 2, activation="tanh", seeds=[0, 1])
    f0, f0_test, observed = net(x).detach(), net(x_test).detach(), {"test": lambda model: model(x_test)}
    # The outputs are independent in the limit, with one kernel for all: here each has its own block.
    theta = flatten_outputs(empirical_ntk(net, x))
    theta_test = flatten_outputs(empirical_ntk(net, x_test, x))
    flow = gradient_flow(theta, y.reshape(-1, 1), f0_train=f0.reshape(2, -1, 1))
    record = train(net, x, y, learning_rate=0.05, steps=400, record=observed, record_at=[100, 400])
    for t, f in zip(record.times, record["test"], strict=True):
        expected = flow.predict(t, theta_test, f0_test.reshape(2, -1, 1)).reshape(2, 4, 2)
        assert (f - expected).square().mean().sqrt() < 0.01 * (expected - f0_test).square().mean().sqrt()


def test_record(data):
    x, y = data
    net = MLP(3, 8, 1, 2, seed=0)
    start = net(x).detach()
    record = train(net, x, y, learning_rate=0.1, steps=5, record={"f": lambda net: net(x)}, record_at=[3, 0, 5])
    assert record.steps == [0, 3, 5]
    torch.testing.assert_close(record.times, torch.tensor([0.0, 0.3, 0.5], dtype=torch.float64))
    assert record["f"].shape == (3, 10, 2)
    torch.testing.assert_close(record["f"][0], start)
    torch.testing.assert_close(record["f"][2], net(x).detach())
    assert record.loss.shape == (6,)
    torch.testing.assert_close((record["f"] - y).square().mean((1, 2)) / 2, record.loss[record.steps])


@pytest.mark.parametrize("steps", [iter([0, 3]), np.array([3, 0]), torch.tensor([0, 3]), map(int, "03")])
def test_steps_to_record_at(data, steps):
    x, y = data
    record = train(
        MLP(3, 8, 1, 2, seed=0), x, y, learning_rate=0.1, steps=3, record={"one": lambda _: 1.0}, record_at=steps
    )
    assert record.steps == [0, 3]
    assert record["one"].tolist() == [1.0, 1.0]


def test_divergence_of_a_model_that_has_no_kernel(data):
    """Dropout in training mode: the record and a bound are there all the same."""
    x, y = data
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 64), nn.Dropout(), nn.Linear(64, 2)).double()
    with pytest.raises(DivergenceError) as caught:
        train(net, x, y, learning_rate=100.0, steps=1000)
    assert 0 < caught.value.max_learning_rate < 100
    assert len(caught.value.record.loss) == caught.value.step


def test_same_seed_same_result(data):
    x, y = data
    first, second = (MLP(3, 16, 2, 2, seed=0) for _ in range(2))
    for net in (first, second):
        train(net, x, y, learning_rate=0.5, steps=20)
    assert torch.equal(first(x), second(x))


def test_any_module(data):
    """A frozen parameter stays, an unused one is no error, gradients that a caller holds are left alone."""
    x, y = data
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    net.register_parameter("unused", nn.Parameter(torch.ones(1, dtype=torch.float64)))
    net[0].weight.requires_grad_(False)
    frozen, held = net[0].weight.clone(), torch.ones_like(net[2].weight)
    net[2].weight.grad = held
    loss = train(net, x, y, learning_rate=0.1, steps=50).loss
    assert loss[-1] < loss[0]
    assert torch.equal(net[0].weight, frozen)
    assert net[2].weight.grad is held
    assert (held == 1).all()


def test_targets_without_an_output_axis(data):
    x, y = data[0], data[1][:, 0]

    class Scalar(MLP):
        def forward(self, x):
            return super().forward(x).squeeze(-1)

    flat, column = Scalar(3, 8, 1, seed=0), MLP(3, 8, 1, seed=0)
    losses = train(flat, x, y, learning_rate=0.2, steps=10).loss
    torch.testing.assert_close(losses, train(column, x, y.unsqueeze(1), learning_rate=0.2, steps=10).loss)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("seed", [{"seed": 0}, {"seeds": [0, 1]}])
def test_divergence_stops_with_the_bound_and_the_record(data, seed, momentum):
    x, y = data
    net = MLP(3, 64, 1, 2, activation="identity", **seed)
    gram = flatten_outputs(empirical_ntk(net, x))
    bound = (1 + momentum) * max_learning_rate(gram).min().item()
    observed = {"f": lambda net: net(x)}
    options = {"learning_rate": 3 * bound, "momentum": momentum, "steps": 10_000}
    with pytest.raises(DivergenceError, match=r"diverged at step \d+: the loss is .*largest stable one") as caught:
        train(net, x, y, **options, record=observed, record_at=range(10_001))
    error = caught.value
    assert error.max_learning_rate == pytest.approx(bound, rel=1e-4)
    assert f"{error.max_learning_rate:.3g}" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert 0 < error.step < 100
    assert error.loss > 1e6 * error.record.loss[0].min()
    assert len(error.record.loss) == error.step
    assert error.record.loss.isfinite().all()
    assert error.record.steps == list(range(error.step))
    assert len(error.record["f"]) == error.step
    train(MLP(3, 64, 1, 2, activation="identity", **seed), x, y, learning_rate=0.9 * bound, steps=1000)


def autograd_descent(model, x, y, learning_rate, momentum=0.0):
    losses = functools.partial(_descent.half_mean_square, y=y, ensemble_size=model.ensemble_size)
    return _descent.Autograd(model, x, losses, learning_rate, momentum)


STRUCTURES = [
    {"depth": depth, "d_out": d_out, "b_std": b_std, "antisymmetric": antisymmetric, "activation": activation} | start
    for depth in (0, 1, 2)
    for d_out in (1, 2)
    for b_std in (None, 0.3)
    for antisymmetric in (False, True)
    for activation in ("relu", "tanh")
    for start in ({"seed": 0}, {"seeds": [0, 1, 2]})
]
ELEMENTWISE = [
    {"depth": 2, "d_out": 2, "activation": activation, "parameterization": parameterization, "seeds": [3, 4]}
    for activation in ACTIVATIONS
    for parameterization in ("ntk", "standard")
]


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("options", STRUCTURES + ELEMENTWISE, ids=str)
def test_steps_without_a_graph_are_those_of_autograd(data, monkeypatch, options, momentum):
    x, y = data[0], data[1][:, : options["d_out"]]
    monkeypatch.setattr(_descent, "BLOCK", 8 * 10 * 8 * 2)  # one or two members at once
    ours, theirs = (MLP(3, 8, output_scale=1.5, **options) for _ in range(2))
    method = _descent.descent(ours, x, y, 0.02, momentum)
    assert isinstance(method, _descent.LayeredDescent | _descent.ShallowDescent)
    autograd = autograd_descent(theirs, x, y, 0.02, momentum)
    torch.testing.assert_close(method.loss(), autograd.loss())
    for steps in (7, 5):
        losses = method.advance(steps)
        torch.testing.assert_close(losses, autograd.advance(steps), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-10, atol=1e-12)
    assert losses.shape == ((5, *theirs(x).shape[:-2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("depth", "d_out"), [(1, 1), (1, 40), (2, 1), (3, 2)])
def test_wide_layers_and_single_precision(normal, dtype, depth, d_out):
    """Products of many columns go straight into the weights."""
    x, y = normal(10, 40).to(dtype), normal(10, d_out).to(dtype)
    ours, theirs = (MLP(40, 48, depth, d_out, seeds=[0, 1], dtype=dtype) for _ in range(2))
    losses = train(ours, x, y, learning_rate=0.1, steps=20, momentum=0.5).loss
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(losses[:-1], autograd_descent(theirs, x, y, 0.1, 0.5).advance(20), **tolerance)
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), **tolerance)


def test_parameters_replaced_while_training(data):
    """A record function may perturb the parameters and put them back, in other memory."""
    x, y = data[0], data[1][:, :1]

    def perturbed(net):
        before = nn.utils.parameters_to_vector(net.parameters())
        nn.utils.vector_to_parameters(1.1 * before, net.parameters())
        found = net(x)
        nn.utils.vector_to_parameters(before, net.parameters())
        return found

    for depth in (1, 2):
        ours, theirs = MLP(3, 8, depth, seed=0), MLP(3, 8, depth, seed=0)
        losses = train(ours, x, y, learning_rate=0.1, steps=50, record={"f": perturbed}, record_at=[0, 7, 50]).loss
        torch.testing.assert_close(losses, train(theirs, x, y, learning_rate=0.1, steps=50).loss)
        torch.testing.assert_close(ours(x), theirs(x))


def test_shallow_networks_of_relus_take_the_shortest_way(data):
    x, y = data
    method = _descent.descent(MLP(3, 8, 1, seed=0), x, y[:, :1], 0.1, 0.0)
    assert isinstance(method, _descent.ShallowDescent)


class Doubled(MLP):
    def forward(self, x):
        return 2 * super().forward(x)


def _frozen():
    net = MLP(3, 8, 1, 2, seed=0)
    net.weights[0].requires_grad_(False)
    return net


def _with_shared_weights():
    net = MLP(3, 8, 3, 2, seed=0)
    net.weights[2] = net.weights[1]
    return net


def _with_a_hook_on_a_gradient():
    net = MLP(3, 8, 1, 2, seed=0)
    net.weights[0].register_hook(torch.zeros_like)
    return net


def _with_a_hook_on_the_output():
    net = MLP(3, 8, 1, 2, seed=0)
    net.register_forward_hook(lambda module, inputs, output: 2 * output)
    return net


def _with_a_hook_before_the_input():
    net = MLP(3, 8, 1, 2, seed=0)
    net.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    return net


def _with_a_forward_of_its_own():
    net = MLP(3, 8, 1, 2, seed=0)
    plain = net.forward
    net.forward = lambda x: 2 * plain(x)
    return net


def _with_another_twin():
    net = MLP(3, 8, 1, 2, seed=0, antisymmetric=True)
    net.twin = MLP(3, 8, 1, 2, seed=1, parameterization="standard")
    return net


def _with_a_twin_of_another_width():
    net = MLP(3, 8, 1, 2, seed=0, antisymmetric=True, parameterization="standard")
    net.twin = MLP(3, 5, 1, 2, seed=1, parameterization="standard")
    return net


def _with_a_twin_of_another_activation():
    net = MLP(3, 8, 1, 2, seed=0, antisymmetric=True)
    net.twin.activation = torch.tanh
    return net


def _with_a_twin_of_another_scale():
    net = MLP(3, 8, 1, 2, seed=0, antisymmetric=True)
    net.twin.output_scale = 2.0
    return net


def _with_a_twin_that_has_one():
    net = MLP(3, 8, 1, 2, seed=0, antisymmetric=True)
    net.twin.twin = lambda x: x[:, :2]
    return net


class DoublesWhenMultiplied(nn.Parameter):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            out = function(*args, **(kwargs or {}))
        return 2 * out if function is torch.Tensor.__rmul__ else out


def _with_a_parameter_of_another_type():
    net = MLP(3, 8, 1, 2, seed=0)
    net.weights[0] = DoublesWhenMultiplied(net.weights[0].detach())
    return net


def _with_another_parameter():
    net = MLP(3, 8, 1, 2, seed=0)
    net.register_parameter("unused", nn.Parameter(torch.ones(1, dtype=torch.float64)))
    return net


@pytest.mark.parametrize(
    "build",
    [
        _with_a_hook_before_the_input,
        _with_a_forward_of_its_own,
        _with_another_twin,
        _with_a_twin_of_another_width,
        _with_a_twin_of_another_activation,
        _with_a_twin_of_another_scale,
        _with_a_twin_that_has_one,
        _with_a_parameter_of_another_type,
        _with_another_parameter,
        lambda: Doubled(3, 8, 1, 2, seed=0),
        lambda: MLP(3, 8, 1, 2, seed=0, activation=nn.PReLU(dtype=torch.float64)),
        lambda: MLP(3, 8, 1, 2, seed=0, activation=nn.ReLU(inplace=True)),
        _frozen,
        _with_shared_weights,
        _with_a_hook_on_a_gradient,
        _with_a_hook_on_the_output,
    ],
)
def test_whatever_is_more_than_an_mlp_takes_autograd(data, build):
    x, y = data
    ours, theirs = build(), build()
    assert isinstance(_descent.descent(ours, x, y, 0.1, 0.0), _descent.Autograd)
    train(ours, x, y, learning_rate=0.1, steps=3)
    optimizer = torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (nn.functional.mse_loss(theirs(x), y) / 2).backward()
        optimizer.step()
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()))


@pytest.mark.parametrize("model", [lambda: MLP(3, 8, 1, seed=0), lambda: MLP(3, 8, 1, 1, seed=0, activation=nn.Tanh())])
def test_results_do_not_depend_on_the_stretches(data, monkeypatch, model):
    x, y = data[0], data[1][:, :1]
    found = []
    for seconds in (0.0, math.inf):
        monkeypatch.setattr(training, "SECONDS_OF_A_STRETCH", seconds)
        net = model()
        loss = train(net, x, y, learning_rate=0.1, steps=37, momentum=0.5).loss
        found.append([loss, *net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_no_tensors_pile_up_in_a_long_run(data, monkeypatch):
    monkeypatch.setattr(training, "SECONDS_OF_A_STRETCH", 0.0)
    x, y = data[0], data[1][:, :1]

    def alive(model):
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    run = train(
        MLP(3, 8, 1, seed=0), x, y, learning_rate=0.1, steps=90, record={"alive": alive}, record_at=[30, 60, 90]
    )
    first, second, third = run["alive"].tolist()
    assert second - first == third - second <= 2  # what is recorded there, not the thirty stretches between


@pytest.mark.parametrize("seeds", [{"seed": 0}, {"seeds": [0, 1]}])
def test_optimizer_and_loss_of_the_user(data, seeds):
    """Classification by Adam; the members of an ensemble as if each were alone."""
    x, labels = data[0], torch.arange(10) % 2
    ours = MLP(3, 8, 1, 2, **seeds)
    optimizer = torch.optim.Adam(ours.parameters(), lr=0.01)
    record = train(ours, x, labels, steps=20, optimizer=optimizer, loss=nn.functional.cross_entropy)
    for s, seed in enumerate(seeds.get("seeds", [0])):
        net = MLP(3, 8, 1, 2, seed=seed)
        adam, expected = torch.optim.Adam(net.parameters(), lr=0.01), []
        for _ in range(20):
            adam.zero_grad()
            loss = nn.functional.cross_entropy(net(x), labels)
            loss.backward()
            adam.step()
            expected.append(loss.detach())
        torch.testing.assert_close(record.loss[:-1].reshape(20, -1)[:, s], torch.stack(expected))
        torch.testing.assert_close(ours(x).reshape(-1, 10, 2)[s], net(x))
    assert record.learning_rate is None
    with pytest.raises(ValueError, match="times: expected a run at a learning rate"):
        record.times  # noqa: B018


def test_optimizer_that_evaluates_several_times_a_step(data):
    x, y = data
    net = MLP(3, 8, 0, 2, seed=0)
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(10, 1, dtype=x.dtype)], 1), y).solution
    best = (torch.cat([x, torch.ones(10, 1, dtype=x.dtype)], 1) @ solution - y).square().mean() / 2
    loss = train(net, x, y, steps=20, optimizer=torch.optim.LBFGS(net.parameters())).loss
    assert loss.shape == (21,)
    torch.testing.assert_close(loss[-1], best, rtol=1e-8, atol=0)


def test_own_loss_by_gradient_descent(data):
    x, y = data
    whole, half = MLP(3, 8, 1, 2, seed=0), MLP(3, 8, 1, 2, seed=0)
    loss = train(whole, x, y, steps=10, learning_rate=0.1, loss=nn.functional.mse_loss).loss
    torch.testing.assert_close(loss, 2 * train(half, x, y, steps=10, learning_rate=0.2).loss)


def test_divergence_of_an_own_loss(data):
    """Only what is not finite counts: nothing is known of its scale."""
    x, y = data
    with pytest.raises(
        DivergenceError, match=r"^training diverged at step \d+: the loss is inf, with learning_rate=100$"
    ) as caught:
        train(MLP(3, 8, 1, 2, seed=0), x, y, steps=10_000, learning_rate=100.0, loss=nn.functional.mse_loss)
    assert caught.value.max_learning_rate is None
    assert caught.value.record.loss.isfinite().all()


class Scaled(MLP):
    """With a factor for each member."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.factors = nn.Parameter(torch.ones(self.ensemble_size, dtype=torch.float64))

    def forward(self, x):
        return self.factors.reshape(-1, 1, 1) * super().forward(x)


def test_distance_moved_by_a_scalar_of_each_member(data):
    x, y = data
    net = Scaled(3, 8, 1, 2, seeds=[0, 1])
    moved = train(net, x, y, learning_rate=0.1, steps=5, record={"moved": distance_moved(net)})["moved"][-1]
    names = [name for name, _ in net.named_parameters()]
    torch.testing.assert_close(moved[names.index("factors")], (net.factors - 1).abs().detach())


class Counts(nn.Module):
    """Puts another buffer in the place of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        self.calls = self.calls + 1
        return x / self.calls


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(8, dtype=torch.float64), nn.Dropout(), Counts()])
def test_looking_does_not_change_the_run(data, layer):
    """Losses evaluated between steps leave batch statistics and random numbers alone."""
    x, y = data
    found = []
    for record_at in (None, range(11)):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 8), copy.deepcopy(layer), nn.Tanh(), nn.Linear(8, 2)).double()
        train(net, x, y, learning_rate=0.1, steps=10, record_at=record_at)
        found.append([*net.parameters(), *net.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    if isinstance(layer, nn.BatchNorm1d):
        assert net[1].num_batches_tracked == 10


def test_scripted_model_with_buffers(data):
    x, y = data
    nets = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        nets[1] = torch.jit.script(nets[1])
    losses = [train(net, x, y, learning_rate=0.1, steps=5).loss for net in nets]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(list(net.buffers()) for net in nets))


def test_lower_precision_of_autocast(data):
    x, y = data[0].float(), data[1].float()
    with torch.autocast("cpu", torch.bfloat16):
        method = _descent.descent(MLP(3, 8, 1, 2, seed=0, dtype=torch.float32), x, y, 0.1, 0.0)
    assert isinstance(method, _descent.Autograd)


class Remembers(nn.Module):
    """Keeps its output, and so can't be copied."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, x):
        self.output = self.linear(x)
        return self.output


def test_model_that_cannot_be_copied(data):
    x, y = data
    net = Remembers()
    net(x)
    train(net, x, y, learning_rate=0.1, steps=5)
    with pytest.raises(DivergenceError, match="largest stable one"):
        train(net, x, y, learning_rate=100.0, steps=1000)


class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * gradient


class Square(torch.autograd.Function):
    """Has no derivative of its derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        if torch.is_grad_enabled():
            raise RuntimeError("no second derivative")
        return 2 * ctx.saved_tensors[0] * gradient


@pytest.mark.parametrize(("function", "reason"), [(OnceDifferentiable, None), (Square, "no second derivative")])
def test_divergence_without_a_bound(data, function, reason):
    """It is told, with the record, of what can't be differentiated twice too."""
    x, y = data

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2, dtype=torch.float64)

        def forward(self, x):
            return function.apply(self.linear(x))

    with pytest.raises(DivergenceError, match=r"the loss is \S+, with learning_rate=1000$") as caught:
        train(Net(), x, y, learning_rate=1000.0, steps=1000)
    assert caught.value.max_learning_rate is None
    assert len(caught.value.record.loss) == caught.value.step
    assert caught.value.__cause__ is None if reason is None else reason in str(caught.value.__cause__)


def test_a_start_that_fits_is_no_measure_of_divergence(data):
    """The first step of Adam is of the size of its rate: from a loss of rounding it goes far beyond a factor of 1e6."""
    x, net = data[0], MLP(3, 8, 1, 2, seed=0)
    y = net(x).detach()
    losses = train(net, x, y + 1e-9, optimizer=torch.optim.Adam(net.parameters(), 0.01), steps=50).loss
    assert len(losses) == 51
    assert losses[0].item() == pytest.approx(1e-18 / 2, rel=1e-5)
    assert losses[1] > 1e9 * losses[0]
    torch.testing.assert_close(losses[-1], (net(x) - y - 1e-9).square().mean().detach() / 2)


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
def test_gradients_are_taken_whoever_calls(data, context):
    x, y = data
    net = nn.Sequential(nn.Linear(3, 2)).double()
    with context():
        loss = train(net, x, y, learning_rate=0.1, steps=20).loss
        with pytest.raises(DivergenceError, match="largest stable one"):
            train(net, x, y, learning_rate=100.0, steps=1000)
    assert loss[-1] < loss[0]


def test_optimizer_of_some_parameters_leaves_the_others_alone(data):
    x, y = data
    net = MLP(3, 8, 1, 2, seed=0)
    before = net.weights[0].clone()
    train(net, x, y, steps=5, optimizer=torch.optim.SGD([net.weights[1]], lr=0.1))
    assert torch.equal(net.weights[0], before)
    assert net.weights[0].grad is None


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"f": 3}, r"record\['f'\]: expected a function of the model, got 3"),
        ([len], r"record: expected a dict of functions, got \[<built-in"),
        ({"f": lambda net: None}, r"record\['f'\]: expected a function that returns a tensor, got None"),
        (
            {"f": lambda net, sizes=[2, 1]: torch.ones(sizes.pop())},
            r"record\['f'\]: expected torch.float32 of shape \(1,\), as at step 0, got .* of shape \(2,\) at step 5",
        ),
    ],
)
def test_refused_records(data, record, message):
    x, y = data
    with pytest.raises((TypeError, ValueError), match=message):
        train(MLP(3, 8, 1, 2, seed=0), x, y, learning_rate=0.1, steps=5, record=record)


def test_recorded_numbers_keep_their_precision(data):
    x, y = data
    losses = {"loss": lambda net: ((net(x) - y).square().mean() / 2).item()}
    record = train(MLP(3, 8, 1, 2, seed=0), x, y, learning_rate=0.1, steps=5, record=losses)
    torch.testing.assert_close(record["loss"], record.loss[[0, 5]], rtol=1e-15, atol=0)


def test_interruption_after_the_last_step_is_none(data, ctrl_c):
    x, y = data

    class Net(MLP):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls == 11:  # one evaluation at the start, then ten steps
                signal.raise_signal(signal.SIGINT)
            return super().forward(x)

    record = train(Net(3, 8, 1, 2, seed=0), x, y, learning_rate=0.1, steps=10, record={"f": lambda net: net(x)})
    assert record.steps == [0, 10]
    assert len(record.loss) == 11


@pytest.mark.parametrize("model", [lambda: MLP(3, 8, 1, seed=0), lambda: MLP(3, 8, 1, 1, seed=0, activation=nn.Tanh())])
def test_interrupted_run_returns_its_record(data, model, ctrl_c):
    x, y = data[0], data[1][:, :1]
    handler, net = signal.getsignal(signal.SIGINT), model()

    def observe(net):
        if observe.calls == 2:
            signal.raise_signal(signal.SIGINT)
        observe.calls += 1
        return net(x)

    observe.calls = 0
    with pytest.warns(RuntimeWarning, match=r"interrupted after \d+ of 1000 steps"):
        record = train(net, x, y, learning_rate=0.1, steps=1000, record={"f": observe}, record_at=range(0, 1000, 10))
    assert signal.getsignal(signal.SIGINT) is handler
    taken = len(record.loss) - 1
    assert taken == 20
    assert record.steps == [0, 10, 20]
    assert record["f"].shape == (3, 10, 1)
    again = model()
    torch.testing.assert_close(train(again, x, y, learning_rate=0.1, steps=taken).loss, record.loss)
    torch.testing.assert_close(list(again.parameters()), list(net.parameters()))


def test_second_interruption_stops_at_once(data, ctrl_c):
    x, y = data

    def observe(net):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(MLP(3, 8, 1, 2, seed=0), x, y, learning_rate=0.1, steps=10, record={"f": observe})
    assert signal.getsignal(signal.SIGINT) is handler


def test_interruption_in_a_thread_is_none(data):
    """Only the main thread hears of signals."""
    x, y = data
    with ThreadPoolExecutor(1) as pool:
        record = pool.submit(train, MLP(3, 8, 1, 2, seed=0), x, y, learning_rate=0.1, steps=5).result()
    assert len(record.loss) == 6


def test_recorders(data):
    x, y = data
    net = MLP(3, 8, 1, 2, seeds=[0, 1])
    start = [p.detach().clone() for p in net.parameters()]
    observed = {"moved": distance_moved(net), "kernel": lambda net: empirical_ntk(net, x[:3], output="trace")}
    record = train(net, x, y, learning_rate=0.1, steps=100, record=observed, record_at=log_spaced_steps(100, 5))
    assert record.steps == [0, 1, 3, 10, 32, 100]
    assert record["moved"].shape == (6, 4, 2)
    assert record["kernel"].shape == (6, 2, 3, 3)
    assert (record["moved"][0] == 0).all()
    for moved, p, before in zip(record["moved"][-1], net.parameters(), start, strict=True):
        torch.testing.assert_close(moved, (p - before).flatten(1).norm(dim=1).detach())
    torch.testing.assert_close(record["kernel"][-1], empirical_ntk(net, x[:3], output="trace"))
    single = MLP(3, 8, 1, 2, seed=1)
    moved = train(single, x, y, learning_rate=0.1, steps=100, record={"moved": distance_moved(single)})["moved"]
    torch.testing.assert_close(moved[-1], record["moved"][-1, :, 1])


@pytest.mark.parametrize(
    ("steps", "count", "expected"), [(1, 2, [0, 1]), (3, 50, [0, 1, 2, 3]), (1000, 4, [0, 1, 10, 100, 1000])]
)
def test_log_spaced_steps(steps, count, expected):
    assert log_spaced_steps(steps, count) == expected


@pytest.mark.parametrize(("watched", "silent"), [(True, False), (False, True)])
def test_progress_bar_is_for_whoever_watches(monkeypatch, capsys, watched, silent):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: watched)
    with progress_bar(10, "step") as bar:
        assert bar.disable == silent
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: "a process")
    with progress_bar(10, "step") as bar:
        assert bar.disable
    assert capsys.readouterr().err == ""


def test_importing_loads_nothing_that_draws():
    script = "import sys, ntk_helpers; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded
    assert not {"IPython", "matplotlib", "seaborn", "PIL", "pandas"} & set(loaded)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_targets_from_an_antisymmetric_start(normal, dtype, depth, momentum):
    """The loss is zero to rounding, throughout; no growth of that is divergence."""
    x = normal(10, 3).to(dtype)
    net = MLP(3, 64, depth, seeds=[0, 1], antisymmetric=True, dtype=dtype, output_scale=100.0)
    rate = 0.5 * max_learning_rate(empirical_ntk(net, x)[..., 0, 0]).min().item()
    loss = train(net, x, torch.zeros(10, 1, dtype=dtype), learning_rate=rate, momentum=momentum, steps=300).loss
    assert (loss < (1e4 * torch.finfo(dtype).eps) ** 2).all()
    with pytest.raises(DivergenceError):  # which goes on all the same where the rate is too large
        train(net, x, 1e-3 + torch.zeros(10, 1, dtype=dtype), learning_rate=100 * rate, steps=2000)


class Checkpointed(nn.Module):
    """Its activations are computed again in the backward pass, with the parameters that it has then."""

    def __init__(self, whole):
        super().__init__()
        self.whole = whole
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()

    def forward(self, x):
        return self.layers(x) if self.whole else checkpoint(self.layers, x, use_reentrant=False)


def test_stability_bound_with_activation_checkpointing(data):
    x, y = data
    bounds = []
    for whole in (True, False):
        torch.manual_seed(0)
        net = Checkpointed(whole)
        bound = max_learning_rate(flatten_outputs(empirical_ntk(net.layers, x))).item()
        with pytest.raises(DivergenceError) as caught:
            train(net, x, y, learning_rate=20 * bound, steps=1000)
        assert caught.value.max_learning_rate == pytest.approx(bound, rel=1e-4)
        bounds.append(caught.value.max_learning_rate)
        assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-10)


def test_divergence_leaves_the_model_where_it_got(data):
    """The bound is of the start, the parameters and buffers of the end."""
    x, y = data
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    last = {}

    def keep(net):
        last.update({name: value.clone() for name, value in net.state_dict().items()})
        return torch.zeros(())

    with pytest.raises(DivergenceError) as caught:
        train(net, x, y, learning_rate=1e4, steps=1000, record={"keep": keep}, record_at=range(1000))
    assert caught.value.max_learning_rate is not None
    step = caught.value.step  # one after what was recorded last
    assert net[1].num_batches_tracked == last["1.num_batches_tracked"] + 1 == step
    assert not torch.equal(net[0].weight, last["0.weight"])


def _two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def _by_hand(net, x, y, steps, learning_rate, momentum=0.0):
    """Steps of SGD, whose velocities start with it."""
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=learning_rate, momentum=momentum)
    for _ in range(steps):
        optimizer.zero_grad()
        (nn.functional.mse_loss(net(x), y) / 2).backward()
        optimizer.step()


@pytest.mark.parametrize("build", [_two_layers, lambda: MLP(3, 8, 1, 2, seed=0), lambda: MLP(3, 8, 1, 1, seed=0)])
@pytest.mark.parametrize("trained_first", [True, False])
@pytest.mark.parametrize("by_optimizer", [True, False])
def test_parameters_unfrozen_or_frozen_while_training(data, build, trained_first, by_optimizer):
    x, y = data
    ours, theirs = build(), build()
    y = y[:, : ours(x).shape[1]]
    first, again = (next(net.parameters()) for net in (ours, theirs))
    first.requires_grad_(trained_first)

    def turn(net):
        first.requires_grad_(not trained_first)
        return torch.zeros(())

    rule = {"optimizer": torch.optim.SGD(ours.parameters(), lr=0.1)} if by_optimizer else {"learning_rate": 0.1}
    train(ours, x, y, **rule, steps=25, record={"turn": turn}, record_at=[10])
    for steps, trained in ((10, trained_first), (15, not trained_first)):
        again.requires_grad_(trained)
        _by_hand(theirs, x, y, steps, 0.1)
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()))


def test_velocities_of_parameters_unfrozen_while_training(data):
    """The others go on, the new one starts from rest."""
    x, y = data
    ours, theirs = _two_layers(), _two_layers()
    ours[0].weight.requires_grad_(False)

    def thaw(net):
        net[0].weight.requires_grad_(True)
        return torch.zeros(())

    options = {"learning_rate": 0.05, "momentum": 0.9, "steps": 25}
    train(ours, x, y, **options, record={"thaw": thaw}, record_at=[10])
    optimizer = torch.optim.SGD(list(theirs.parameters())[1:], lr=0.05, momentum=0.9)
    for step in range(25):
        if step == 10:
            optimizer.add_param_group({"params": [theirs[0].weight]})
        optimizer.zero_grad()
        (nn.functional.mse_loss(theirs(x), y) / 2).backward()
        optimizer.step()
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()))


def test_an_mlp_frozen_while_it_trains_with_momentum_is_refused(data):
    x, y = data
    net = MLP(3, 8, 1, 2, seed=0)

    def freeze(net):
        net.weights[0].requires_grad_(False)
        return torch.zeros(())

    options = {"learning_rate": 0.1, "momentum": 0.5, "steps": 9}
    with pytest.raises(RuntimeError, match=r"record: expected functions that leave an MLP .*torch.optim.SGD"):
        train(net, x, y, **options, record={"freeze": freeze}, record_at=[3])


def test_parameter_groups_added_while_training(data):
    x, y = data
    ours, theirs = _two_layers(), _two_layers()
    optimizer = torch.optim.SGD(ours[2].parameters(), lr=0.1)

    def add(net):
        optimizer.add_param_group({"params": list(net[0].parameters()), "lr": 0.05})
        return torch.zeros(())

    train(ours, x, y, optimizer=optimizer, steps=25, record={"add": add}, record_at=[10])
    for step in range(25):
        loss = nn.functional.mse_loss(theirs(x), y) / 2
        gradients = torch.autograd.grad(loss, list(theirs.parameters()))
        with torch.no_grad():
            for p, gradient, rate in zip(theirs.parameters(), gradients, [0.05, 0.05, 0.1, 0.1], strict=True):
                p.sub_(gradient, alpha=rate if step >= 10 or rate == 0.1 else 0.0)
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()))


@pytest.mark.parametrize("shape", [(2, 5), (1, 4, 4), (2, 3, 2, 2)])
def test_outputs_of_any_shape(normal, shape):
    """Images and tokens: as the same numbers in a row, half the mean square over all entries."""
    x, y = normal(6, 3), normal(6, *shape)
    size = math.prod(shape)

    def build(*last):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, size), *last).double()

    ours, rows = build(nn.Unflatten(1, shape)), build()
    record = train(ours, x, y, learning_rate=0.1, steps=20, record={"f": lambda net: net(x)})
    torch.testing.assert_close(record.loss, train(rows, x, y.flatten(1), learning_rate=0.1, steps=20).loss)
    torch.testing.assert_close(record.loss[-1], ((ours(x) - y).square().sum() / (2 * 6 * size)).detach())
    assert record["f"].shape == (2, 6, *shape)
    bound = max_learning_rate(flatten_outputs(empirical_ntk(build(), x))).item()
    with pytest.raises(DivergenceError) as caught:
        train(build(nn.Unflatten(1, shape)), x, y, learning_rate=50 * bound, steps=1000)
    assert caught.value.max_learning_rate == pytest.approx(bound, rel=1e-4)


def test_the_bound_of_a_model_with_a_parameter_without_effect(normal):
    """Its gradient, zero, has no second pass."""
    x, y = normal(6, 3), normal(6, 1)
    net = nn.Sequential(nn.Linear(3, 1)).double()
    net.register_parameter("spare", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    design = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    bound = 2 * len(x) / torch.linalg.matrix_norm(design, 2).square().item()
    with pytest.raises(DivergenceError) as caught:
        train(net, x, y, learning_rate=5 * bound, steps=1000)
    assert caught.value.max_learning_rate == pytest.approx(bound, rel=1e-9)


class Images(MLP):
    """The members' outputs as images."""

    def forward(self, x):
        return super().forward(x).unflatten(-1, (2, 2))


def test_ensemble_with_outputs_of_any_shape(normal):
    x, y = normal(6, 3), normal(6, 2, 2)
    ours, rows = Images(3, 8, 1, 4, seeds=[0, 1]), MLP(3, 8, 1, 4, seeds=[0, 1])
    losses = train(ours, x, y, learning_rate=0.1, steps=20).loss
    torch.testing.assert_close(losses, train(rows, x, y.flatten(1), learning_rate=0.1, steps=20).loss)


class Residual(nn.Module):
    """u_t - 0.3 u_xx + u u_x of a network u(x, t), by derivatives inside of the forward pass."""

    def __init__(self, inside):
        super().__init__()
        torch.manual_seed(0)
        self.u, self.inside = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)).double(), inside

    def forward(self, z):
        z = z.requires_grad_() if self.inside else z
        u = self.u(z)
        g = torch.autograd.grad(u, z, torch.ones_like(u), create_graph=True)[0]
        h = torch.autograd.grad(g[:, :1], z, torch.ones_like(u), create_graph=True)[0]
        return g[:, 1:] - 0.3 * h[:, :1] + u * g[:, :1]


@pytest.mark.parametrize("inside", [True, False])
def test_residual_network_that_differentiates_itself(normal, inside):
    z, y = normal(4, 2), torch.zeros(4, 1, dtype=torch.float64)
    ours, theirs = Residual(inside), Residual(inside)
    z = z.requires_grad_(not inside)
    record = train(ours, z, y, learning_rate=0.01, steps=20, record={"r": lambda net: net(z)}, record_at=[20])
    _by_hand(theirs, z.detach().clone().requires_grad_(), y, 20, 0.01)
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()))
    expected = ours(z).detach()
    torch.testing.assert_close(record["r"][0], expected)
    torch.testing.assert_close(record.loss[-1], expected.square().mean() / 2)
    assert not record["r"].requires_grad
    assert z.grad is None


def test_recorded_derivatives_by_the_input(normal):
    """Of an MLP that trains without a graph, too; what can do without gradients is evaluated without."""
    x, y, net = normal(5, 2), normal(5, 1), MLP(2, 8, 1, activation="tanh", seed=0)

    def slope(net):
        z = x.clone().requires_grad_()
        return torch.autograd.grad(net(z).sum(), z)[0]

    observed = {"slope": slope, "plain": lambda net: net(x).requires_grad}
    record = train(net, x, y, learning_rate=0.1, steps=5, record=observed)
    torch.testing.assert_close(record["slope"][-1], slope(net))
    assert not record["plain"].any()


def test_integers_of_numpy_and_torch(data):
    x, y = data
    losses = []
    for integer in (int, np.int64, torch.tensor):
        net = MLP(3, integer(8), integer(1), integer(2), seed=integer(0))
        record = train(net, x, y, learning_rate=0.1, steps=integer(3), record_at=[integer(0), integer(3)])
        assert record.steps == [0, 3]
        losses.append(record.loss)
        assert log_spaced_steps(integer(10), integer(3)) == [0, 1, 3, 10]
        assert all(type(step) is int for step in log_spaced_steps(integer(10)))
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])
    with pytest.raises(TypeError, match="steps: expected an int, got bool"):
        train(MLP(3, 8, 1, 2, seed=0), x, y, learning_rate=0.1, steps=True)


class Spectral(nn.Module):
    def __init__(self, complex_numbers):
        super().__init__()
        weight = torch.view_as_complex(torch.ones(3, 2, dtype=torch.float64)) if complex_numbers else torch.ones(3)
        self.weight = nn.Parameter(weight)


def test_complex_parameters_are_refused_with_what_to_do():
    with pytest.raises(TypeError, match=r"parameter weight: .*complex128; .*view_as_real.*view_as_complex"):
        train(Spectral(True), X, Y, learning_rate=0.1, steps=1)


X = torch.ones(4, 3, dtype=torch.float64)
Y = torch.ones(4, 1, dtype=torch.float64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": -0.1}, "learning_rate: expected a positive finite number, got -0.1"),
        ({"learning_rate": math.inf}, "learning_rate: expected a positive finite number, got inf"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"momentum": 1.0}, "momentum: expected a number below 1, got 1.0"),
        ({"steps": 10.0}, "steps: expected an int, got float"),
        ({"x": X.float()}, "x: expected torch.float64, the dtype of the parameters, got torch.float32"),
        ({"y": Y.float()}, "y: expected torch.float64, the dtype of the parameters, got torch.float32"),
        ({"x": X.to("meta")}, "x: expected device cpu, that of the parameters, got meta"),
        ({"x": X[:3]}, r"x: expected 4 rows, as many as y, got shape \(3, 3\)"),
        ({"x": [1.0, 2.0]}, "x: expected a torch.Tensor, got list"),
        ({"x": X * torch.nan}, "x: expected finite values, got 12 NaN or infinite of 12"),
        ({"y": Y / 0}, "y: expected finite values, got 4 NaN or infinite of 4"),
        ({"y": Y[:, 0]}, r"y: expected the shape of the predictions, .*got \(4,\); reshape"),
        ({"y": Y.long()}, r"y: expected a floating-point dtype, got torch.int64; labels need a loss, .*cross_entropy"),
        ({"model": nn.LSTM(3, 2).double()}, "model: expected one that returns a tensor, got tuple; wrap it"),
        ({"y": Y.unsqueeze(0)}, r"x: expected 1 rows, as many as y, got shape \(4, 3\)"),
        ({"y": Y[0, 0]}, r"y: expected shape \(n, ...\), that of the predictions, got \(\)"),
        ({"y": Y[:, :0]}, r"y: expected shape \(n, ...\), that of the predictions, got \(4, 0\)"),
        ({"learning_rate": None}, "learning_rate, optimizer: expected exactly one, got None and None"),
        ({"optimizer": 3}, "learning_rate, optimizer: expected exactly one, got 0.1 and 3"),
        ({"optimizer": 3, "learning_rate": None}, "optimizer: expected a torch.optim.Optimizer, got int"),
        (
            {"optimizer": torch.optim.SGD([torch.ones(1)], lr=0.1), "learning_rate": None},
            "optimizer: expected one of the parameters of model, got one of others",
        ),
        (
            {"optimizer": torch.optim.SGD([torch.ones(1)], lr=0.1), "learning_rate": None, "momentum": 0.5},
            "optimizer: expected one of the parameters of model, got one of others",
        ),
        ({"loss": lambda f, y: f - y}, r"loss: expected a floating-point scalar .*got shape \(4, 1\), torch.float64"),
        ({"loss": lambda f, y: 1.0}, r"loss: expected a floating-point scalar tensor for each member, got 1.0"),
        ({"loss": "mse"}, "loss: expected a function of the prediction and y, got 'mse'"),
        ({"loss": lambda f, y: f.sum(), "y": None}, "y: expected a torch.Tensor of 4 rows, got None"),
        ({"learning_rate": "0.1"}, "learning_rate: expected a number, got '0.1'"),
        ({"learning_rate": torch.ones(2)}, "learning_rate: expected a number, got tensor"),
        ({"x": X[:0], "y": Y[:0]}, r"x: expected shape \(n, ...\) with n > 0, got \(0, 3\)"),
        ({"x": X[:, 0]}, r"x: expected shape \(n, 3\), got \(4,\)"),
        ({"x": X[:, :2]}, r"x: expected shape \(n, 3\), got \(4, 2\)"),
        ({"record_at": 3}, "record_at: expected a sequence of integers, got 3"),
        ({"record_at": [0.5]}, r"record_at: expected a sequence of integers, got \[0.5\]"),
        ({"record_at": [0, 11]}, r"record_at: expected integers from 0 to 10, got \[11\]"),
        ({"model": torch.relu}, "model: expected a torch.nn.Module, got builtin_function_or_method"),
        ({"model": nn.ReLU()}, "model: expected trainable parameters, got none"),
    ],
)
def test_refusals(changes, message):
    arguments = {"model": MLP(3, 4, 1, seed=0), "x": X, "y": Y, "learning_rate": 0.1, "steps": 10} | changes
    with pytest.raises((TypeError, ValueError), match=message):
        train(**arguments)


def test_momentum_belongs_to_the_optimizer():
    net = MLP(3, 4, 1, seed=0)
    with pytest.raises(ValueError, match=r"momentum: expected 0 where an optimizer is given, .*, got 0.5"):
        train(net, X, Y, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), steps=1, momentum=0.5)


def test_network_that_is_not_finite_at_the_start():
    net = MLP(3, 4, 1, seed=0)
    with torch.no_grad():
        net.weights[0].fill_(1e200)  # finite, but the square of the output is not
    with pytest.raises(ValueError, match=r"loss at the start: expected finite values"):
        train(net, X, Y, learning_rate=0.1, steps=1)
