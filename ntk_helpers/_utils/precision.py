"""Arithmetic as written: no TF32, no autocast, attention by its formula."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_lock, _users, _switches = threading.Lock(), 0, ExitStack()


@contextmanager
def full_precision() -> Iterator[None]:
    """Hold matrix products and convolutions at the precision of their operands; restore the caller's settings.

    On CUDA, convolutions use TF32 by default, of 11 bits; `torch.set_float32_matmul_precision` and `torch.autocast`
    allow as little elsewhere. Attention is computed as its formula says, since the fused kernels lack some derivatives,
    and inference mode, which has none, ends. What is set for all threads is set while any of them is inside.
    """
    global _users
    with _lock:
        if _users == 0:
            _switches.enter_context(_switched())
        _users += 1
    try:
        with (
            torch.inference_mode(False),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _switches.close()


@contextmanager
def _switched():
    """The settings that PyTorch keeps for all threads together."""
    backends: Any = torch.backends  # which has more than its types say
    operations = [
        *(backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn),
        *(backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn),
    ]
    lowered = [(operation, operation.fp32_precision) for operation in operations]
    lowered = [(operation, precision) for operation, precision in lowered if precision not in ("none", "ieee")]
    fast_attention = backends.mha.get_fastpath_enabled()
    try:
        backends.mha.set_fastpath_enabled(False)
        for operation, _ in lowered:
            operation.fp32_precision = "ieee"
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        backends.mha.set_fastpath_enabled(fast_attention)
        for operation, precision in lowered:
            operation.fp32_precision = "none"  # that is, what holds for all operations
            if operation.fp32_precision != precision:
                operation.fp32_precision = precision
