"""Gram matrices of gradients, for all pairs of outputs or some, in one layout.

The layout is (b, n1, k, n2, l), with (k, l) the pairs of outputs for the full kernel, and b the outputs paired with
themselves for its diagonal; what a kernel does not need has size 1.
"""

import torch

STRIP = 2**18  # numbers in a strip of a Gram matrix: it stays in the cache
ROWS = 128  # of a kernel mirrored at once


def gram(s1, s2, output):
    """Inner products over the last axis, (b, G, n1, T, k, n2, U, l), of s1 (n1, C, G, T, O) and s2 (n2, C, G, U, O).

    The trace sums over the outputs C here; groups G and locations T, U are `summed` by the caller, or weighted before.
    """
    rows, columns = _OUTPUTS_APART[output](s1), _OUTPUTS_APART[output](s2)
    products = rows.flatten(2, 4) @ columns.flatten(2, 4).mT
    return products.unflatten(3, columns.shape[2:5]).unflatten(2, rows.shape[2:5])


def summed(pairs):
    """The sum over groups and locations: (b, G, n1, T, k, n2, U, l) to the layout (b, n1, k, n2, l)."""
    several = [axis for axis in (1, 3, 6) if pairs.shape[axis] > 1]
    return (pairs.sum(several, keepdim=True) if several else pairs).squeeze((1, 3, 6))


def gradient_gram(g1, g2, output):
    """Inner products of gradients (n1, C, p) and (n2, C, p), strip by strip: triples (rows, columns, block)."""
    for rows, columns in strips(len(g1), len(g2), output_pairs(g1.shape[1], output), symmetric=g1 is g2):
        yield rows, columns, summed(gram(g1[rows, :, None, None], g2[columns, :, None, None], output))


def from_full(block, output):
    """From a full block (n1, C, n2, C) to the layout."""
    if output == "full":
        return block.unsqueeze(0)
    diagonal = block.diagonal(dim1=1, dim2=3).movedim(-1, 0)
    return (diagonal if output == "diagonal" else diagonal.sum(0, keepdim=True))[:, :, None, :, None]


def arranged(block, output):
    """From the layout to kernels: (n1, n2, C, C) in full, (n1, n2, C) for the diagonal, or (n1, n2) for the trace."""
    if output == "full":
        return block.squeeze(0).transpose(1, 2)
    diagonal = block.squeeze((2, 4)).movedim(0, -1)
    return diagonal if output == "diagonal" else diagonal.squeeze(-1)


def mirrored(kernel, output):
    """Write the upper triangle of kernels (S, n, n, ...) over the lower, in place: symmetric to the last bit."""
    for start in range(0, kernel.shape[1], ROWS):
        stop = start + ROWS
        corner = kernel[:, start:stop, start:stop]
        corner.copy_(_symmetric(corner, output))
        kernel[:, stop:, start:stop] = _flipped(kernel[:, start:stop, stop:], output)


def _symmetric(kernel, output):
    n, outputs = kernel.shape[1], kernel.shape[3] if output == "full" else 1
    index = torch.arange(n * outputs, device=kernel.device).reshape(n, 1, outputs, 1)
    upper = (index <= index.transpose(0, 1).transpose(2, 3)).reshape(n, n, *[outputs] * (kernel.ndim - 3))
    return torch.where(upper, kernel, _flipped(kernel, output))


def _flipped(kernel, output):
    flipped = kernel.transpose(1, 2)
    return flipped.transpose(3, 4) if output == "full" else flipped


def output_pairs(outputs, output):
    """How many inner products a pair of points has."""
    return {"full": outputs**2, "diagonal": outputs, "trace": 1}[output]


def strips(n1, n2, numbers, symmetric):
    """Slices of rows and columns that cover a tile, or its upper triangle, each pair taking `numbers` numbers."""
    rows = max(1, STRIP // (n2 * numbers))
    if symmetric:  # eight strips waste a sixteenth of the square; products of fewer than 16 rows are slow
        rows = min(rows, max(16, n1 // 8))
    for start in range(0, n1, rows):
        yield slice(start, min(start + rows, n1)), slice(start if symmetric else 0, n2)


# (n, C, G, T, O) to (b, G, n, T, k, O)
_OUTPUTS_APART = {
    "full": lambda s: s.permute(2, 0, 3, 1, 4).unsqueeze(0),
    "diagonal": lambda s: s.permute(1, 2, 0, 3, 4).unsqueeze(4),
    "trace": lambda s: s.permute(2, 0, 3, 1, 4).flatten(3).unsqueeze(3).unsqueeze(0),
}
