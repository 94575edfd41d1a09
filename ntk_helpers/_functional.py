"""A model in another state, and left as it was."""

from contextlib import contextmanager
from functools import wraps

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def call(model, state, x):
    """The output of the model with other parameters and buffers, by name; what it writes to the buffers is lost.

    To `torch.func.functional_call`, a module registered under two names is two modules with tied weights; it then puts
    back the wrong ones.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    values = {id(tensor): state[name] for name, tensor in named if name in state}
    slots = {}
    for prefix, module in model.named_modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if id(tensor) in values:
                value = values[id(tensor)]
                slots[f"{prefix}.{name}" if prefix else name] = value.clone() if name in module._buffers else value
    return torch.func.functional_call(model, slots, x, tie_weights=False)


def leaves_the_model(function):
    """Let a function of a model put back the attributes of all its modules: some cache what they computed."""

    @wraps(function)
    def wrapper(model, *args, **options):
        modules = list(model.modules()) if isinstance(model, nn.Module) else []
        before = [dict(vars(module)) for module in modules]
        try:
            return function(model, *args, **options)
        finally:
            for module, attributes in zip(modules, before, strict=True):
                vars(module).clear()
                vars(module).update(attributes)

    return wrapper


@contextmanager
def full_precision():
    """Hold matrix products and convolutions at the precision of their operands; restore the caller's settings.

    On CUDA, convolutions use TF32 by default, of 11 bits; `torch.set_float32_matmul_precision` and `torch.autocast`
    allow as little elsewhere. Attention is computed as its formula says, since the fused kernels lack some derivatives,
    and inference mode, which has none, ends.
    """
    backends = torch.backends
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
        with (
            torch.inference_mode(False),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            sdpa_kernel(SDPBackend.MATH),
        ):
            yield
    finally:
        backends.mha.set_fastpath_enabled(fast_attention)
        for operation, precision in lowered:
            operation.fp32_precision = "none"  # that is, what holds for all operations
            if operation.fp32_precision != precision:
                operation.fp32_precision = precision
