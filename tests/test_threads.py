"""Threads on one model give the numbers of one, and leave PyTorch's settings as they were."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from ntk_helpers import MLP, empirical_ntk, jacobian, linearize, ntk_kernel, ntk_vector_product
from ntk_helpers._utils.precision import full_precision


def settings():
    backends = torch.backends
    operations = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    cuda = backends.cuda
    attention = (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled())
    return [backends.mha.get_fastpath_enabled(), *attention, *(operation.fp32_precision for operation in operations)]


def test_threads_on_one_model(normal):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 2)).double().eval()
    linear, x, v, before = linearize(model), normal(5, 3, 4), normal(5, 2), settings()
    calls = [
        lambda: empirical_ntk(model, x),
        lambda: empirical_ntk(model, x, method="jacobian"),
        lambda: jacobian(model, x),
        lambda: ntk_vector_product(model, x, v),
        lambda: linear(x).detach(),
        lambda: ntk_kernel(x.flatten(1), depth=2),
    ]
    expected = [call() for call in calls]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(call) for _ in range(4) for call in calls]
    for i, future in enumerate(found):
        torch.testing.assert_close(future.result(), expected[i % len(calls)], rtol=0, atol=0)
    assert settings() == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_settings_that_overlap_in_time(normal):
    """Who leaves first must not restore what the other still needs, nor who leaves last what the first had set."""
    before, first, second = settings(), full_precision(), full_precision()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    inside = settings()
    assert not inside[0]
    assert inside[1:4] == [False, False, True]
    second.__exit__(None, None, None)
    assert settings() == before


def test_random_numbers_of_another_thread_are_its_own(normal):
    """A thread that draws while a kernel is computed neither has it refused, nor its own numbers put back."""
    model, x, stop = MLP(3, 16, 2, 2, seed=0), normal(4, 3), []
    drawn = []

    def draw():
        while not stop:
            drawn.append(torch.rand(3))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(draw)
        try:
            for _ in range(20):
                empirical_ntk(model, x)
        finally:
            stop.append(True)
    assert len(set(map(tuple, torch.stack(drawn).tolist()))) == len(drawn)
