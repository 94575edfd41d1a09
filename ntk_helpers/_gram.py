"""Gram matrices of gradients, for all pairs of outputs or some, in one layout.

The layout is (b, n1, k, n2, l), with (k, l) the pairs of outputs for the full kernel, and b the outputs paired with
themselves for its diagonal; what a kernel does not need has size 1. Leading axes, of ensembles, stay in front.
"""


def gram(s1, s2, output):
    """Inner products over the last axis, (b, G, n1, T, k, n2, U, l), of s1 (n1, C, G, T, O) and s2 (n2, C, G, U, O).

    The trace sums over the outputs C here; groups G and locations T, U are `summed` by the caller, or weighed before.
    """
    rows, columns = _OUTPUTS_APART[output](s1), _OUTPUTS_APART[output](s2)
    products = rows.flatten(2, 4) @ columns.flatten(2, 4).mT
    return products.unflatten(3, columns.shape[2:5]).unflatten(2, rows.shape[2:5])


def summed(pairs):
    """The sum over groups and locations: (b, G, n1, T, k, n2, U, l) to the layout (b, n1, k, n2, l)."""
    several = [axis for axis in (1, 3, 6) if pairs.shape[axis] > 1]
    return (pairs.sum(several, keepdim=True) if several else pairs).squeeze((1, 3, 6))


def gradient_gram(g1, g2, output):
    """Inner products of gradients (n1, C, p) and (n2, C, p), in the layout."""
    return summed(gram(g1[:, :, None, None], g2[:, :, None, None], output))


def from_full(block, output):
    """From a full block (n1, C, n2, C) to the layout."""
    if output == "full":
        return block.unsqueeze(0)
    diagonal = block.diagonal(dim1=1, dim2=3).movedim(-1, 0)
    return (diagonal if output == "diagonal" else diagonal.sum(0, keepdim=True))[:, :, None, :, None]


def arranged(block, output):
    """From the layout to kernels: (..., n1, n2, C, C) in full, (..., n1, n2, C) for the diagonal, or (..., n1, n2)."""
    if output == "full":
        return block.squeeze(-5).transpose(-3, -2)
    diagonal = block.squeeze((-3, -1)).movedim(-3, -1)
    return diagonal if output == "diagonal" else diagonal.squeeze(-1)


def transposed(kernel, output):
    """The kernel from the second points to the first: of kernels as `arranged`."""
    points = {"full": (-4, -3), "diagonal": (-3, -2), "trace": (-2, -1)}[output]
    kernel = kernel.transpose(*points)
    return kernel.transpose(-2, -1) if output == "full" else kernel


# (n, C, G, T, O) to (b, G, n, T, k, O)
_OUTPUTS_APART = {
    "full": lambda s: s.permute(2, 0, 3, 1, 4).unsqueeze(0),
    "diagonal": lambda s: s.permute(1, 2, 0, 3, 4).unsqueeze(4),
    "trace": lambda s: s.permute(2, 0, 3, 1, 4).flatten(3).unsqueeze(3).unsqueeze(0),
}
