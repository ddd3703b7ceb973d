"""Small matrices in elementary torch operations: the principal square root, rotations of a matrix.

Everything that rounds is an operator of torch on a few numbers, so that an engine perturbs each of
the steps. Decisions (which entry is negligible, which shift) are taken on the numbers there are.

Method of the square root: Björck & Hammarling (1983, doi:10.1016/0024-3795(83)80010-X), in real
arithmetic Higham (1987, doi:10.1016/0024-3795(87)90118-2): the real Schur form by Householder
reflections and Francis' double-shift QR steps (Golub & Van Loan, Matrix Computations, §7.5), the
root of the quasi-triangular factor, and back. It is the method of Eigen and so of
`tf.linalg.sqrtm`; the root of a 2×2 block has Higham's closed form here, where Eigen takes the
block's eigenvectors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from morphbits.errors import UserError

QR_STEPS = 40  # for each eigenvalue; two or three are usual
EXCEPTIONAL = (10, 30)  # steps whose shifts are others, so that no cycle goes on for ever


def square_root(matrix_NN: Tensor) -> Tensor:
    """The principal square root of a real matrix without eigenvalues on the negative real axis."""
    triangle, vectors = _schur(matrix_NN)
    root = vectors @ _quasi_triangular_root(triangle) @ vectors.T
    if not bool(torch.isfinite(root).all()):
        raise UserError(
            "the affine transform has no real square root (it mirrors, or turns by 180 degrees), "
            "so these images have no mid-space: are both images whole heads, and finite?"
        )
    return root


def _reflection(x: Tensor) -> tuple[Tensor, Tensor]:
    """A vector v with v[0] = 1 and the number τ of the reflection 1 − τ·v·vᵀ, which takes `x` to a
    multiple of the first unit vector; τ = 0 where `x` is that already."""
    tail = (x[1:] * x[1:]).sum()
    if float(tail) == 0:
        return torch.cat([torch.ones_like(x[:1]), torch.zeros_like(x[1:])]), tail
    length = (x[0] * x[0] + tail).sqrt()
    beta = -length if float(x[0]) >= 0 else length
    rest = x[1:] / (x[0] - beta)
    return torch.cat([torch.ones_like(x[:1]), rest]), (beta - x[0]) / beta


def _reflect(matrix: Tensor, vectors: Tensor, first: int, x: Tensor) -> None:
    """matrix ← P·matrix·P and vectors ← vectors·P, in place, for the reflection P of `x` in the
    rows and columns that begin at `first`."""
    v, tau = _reflection(x)
    if float(tau) == 0:
        return
    span = slice(first, first + len(v))
    matrix[span] = matrix[span] - torch.outer(tau * v, v @ matrix[span])
    for a in (matrix, vectors):
        a[:, span] = a[:, span] - torch.outer(a[:, span] @ v, tau * v)


def _schur(matrix_NN: Tensor) -> tuple[Tensor, Tensor]:
    """T and U with matrix = U·T·Uᵀ: U orthogonal, T upper triangular but for 2×2 blocks on its
    diagonal that belong to pairs of complex eigenvalues."""
    n, epsilon = len(matrix_NN), torch.finfo(matrix_NN.dtype).eps
    h, u = matrix_NN.clone(), torch.eye(n, dtype=matrix_NN.dtype)
    for k in range(n - 2):
        _reflect(h, u, k + 1, h[k + 1 :, k].clone())
        h[k + 2 :, k] = 0
    last, steps = n - 1, 0
    while last > 0:
        first = last
        while first > 0:
            scale = float(h[first - 1, first - 1].abs()) + float(h[first, first].abs())
            if float(h[first, first - 1].abs()) <= epsilon * scale:
                h[first, first - 1] = 0
                break
            first -= 1
        if first == last:
            last, steps = last - 1, 0
        elif first == last - 1:
            _split(h, u, first)
            last, steps = last - 2, 0
        else:
            steps += 1
            if steps > QR_STEPS:
                raise UserError("the Schur form of an affine transform was not found; its numbers "
                                "may be bad")  # fmt: skip
            _francis_step(h, u, first, last, exceptional=steps in EXCEPTIONAL)
    return h, u


def _split(h: Tensor, u: Tensor, k: int) -> None:
    """Make the block in rows k and k + 1 triangular where its eigenvalues are real."""
    p = (h[k, k] - h[k + 1, k + 1]) * 0.5
    q = p * p + h[k + 1, k] * h[k, k + 1]
    if float(q) < 0:
        return
    root = q.sqrt()
    x = p + root if float(p) >= 0 else p - root  # (x, h[k + 1, k]) is an eigenvector
    y = h[k + 1, k].clone()
    length = (x * x + y * y).sqrt()
    c, s = x / length, y / length
    rotation = torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
    rows = slice(k, k + 2)
    h[rows] = rotation.T @ h[rows]
    for a in (h, u):
        a[:, rows] = a[:, rows] @ rotation
    h[k + 1, k] = 0.0  # exactly, whatever was rounded


def _francis_step(h: Tensor, u: Tensor, first: int, last: int, exceptional: bool) -> None:
    """One implicit double-shift QR step on the rows `first` to `last`."""
    if exceptional:  # as EISPACK's hqr
        size = h[last, last - 1].abs() + h[last - 1, last - 2].abs()
        total, product = size * 1.5, size * size
    else:
        total = h[last - 1, last - 1] + h[last, last]
        product = h[last - 1, last - 1] * h[last, last] - h[last - 1, last] * h[last, last - 1]
    a, b, c = h[first, first], h[first, first + 1], h[first + 1, first]
    d, e = h[first + 1, first + 1], h[first + 2, first + 1]
    x = torch.stack([a * a + b * c - total * a + product, c * (a + d - total), c * e])
    for k in range(first, last):
        rows = min(3, last - k + 1)
        _reflect(h, u, k, x[:rows])
        if k > first:
            h[k + 1 : k + rows, k - 1] = 0
        x = h[k + 1 : k + 4, k].clone()


def _quasi_triangular_root(t: Tensor) -> Tensor:
    """R with R·R = t, upper triangular but for the same 2×2 blocks."""
    n = len(t)
    starts = [k for k in range(n) if k == 0 or float(t[k, k - 1]) == 0]
    blocks = [slice(a, b) for a, b in zip(starts, [*starts[1:], n], strict=True)]
    root = torch.zeros_like(t)
    for b in blocks:
        root[b, b] = _block_root(t[b, b])
    for j, right in enumerate(blocks):
        for i in range(j - 1, -1, -1):
            above = blocks[i]
            between = slice(above.stop, right.start)
            rest = t[above, right]
            if between.start < between.stop:
                rest = rest - root[above, between] @ root[between, right]
            root[above, right] = _sylvester(root[above, above], root[right, right], rest)
    return root


def _block_root(block: Tensor) -> Tensor:
    """The root of a number, or of a 2×2 block with complex eigenvalues θ ± iμ: α + (block − θ) /
    2α, where α is the real part of the eigenvalue's root."""
    if block.numel() == 1:
        return block.sqrt()
    theta = (block[0, 0] + block[1, 1]) * 0.5
    half = (block[0, 0] - block[1, 1]) * 0.5
    squared = -(half * half + block[0, 1] * block[1, 0])
    length = (theta * theta + squared).sqrt()
    if float(theta) > 0:
        alpha = ((length + theta) * 0.5).sqrt()
    else:  # without cancellation
        alpha = squared.sqrt() / ((length - theta) * 2).sqrt()
    one = torch.eye(2, dtype=block.dtype)
    return one * alpha + (block - one * theta) / (alpha * 2)


def _sylvester(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """X with a·X + X·b = c, for blocks of one or two rows."""
    if a.numel() == b.numel() == 1:
        return c / (a + b)
    one_a, one_b = torch.eye(len(a), dtype=a.dtype), torch.eye(len(b), dtype=b.dtype)
    system = torch.kron(a, one_b) + torch.kron(one_a, b.T.contiguous())
    return torch.linalg.solve(system, c.reshape(-1)).reshape(c.shape)


def rigid(matrix_B44: Tensor) -> Tensor:
    """The matrix without its scaling and shear: translation, and the rotation R of M = R·S·E.

    S·E is the Cholesky factor of MᵀM (negative in its first row where M mirrors). The rotation is
    taken through its angles about X, Y and Z (R = X·Y·Z), as in voxelmorph's
    `affine_matrix_to_params` and `params_to_affine_matrix`.
    """
    linear_BVV = matrix_B44[:, :3, :3]
    upper_BVV = torch.linalg.cholesky(linear_BVV.mT @ linear_BVV).mT
    scale_BV = torch.diagonal(upper_BVV, dim1=1, dim2=2)
    sign_B = torch.sign(torch.linalg.det(linear_BVV))
    scale_BV = torch.cat([(scale_BV[:, 0] * sign_B)[:, None], scale_BV[:, 1:]], 1)
    shear_BVV = torch.triu(torch.linalg.inv(torch.diag_embed(scale_BV)) @ upper_BVV, 1)
    strip_BVV = torch.diag_embed(scale_BV) @ (shear_BVV + torch.eye(3, dtype=shear_BVV.dtype))
    angles = _angles(linear_BVV @ torch.linalg.inv(strip_BVV))
    result = matrix_B44.clone()
    result[:, :3, :3] = _rotation(*(angle * (180 / math.pi) * (math.pi / 180) for angle in angles))
    return result


def _angles(rotation_BVV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Radians about X, Y and Z; where Y turns by 90 degrees, the one about X is 0."""
    r = rotation_BVV
    y = torch.asin(r[:, 0, 2].clamp(-1, 1))
    cosine = torch.cos(y)
    x = torch.atan2((-r[:, 1, 2] / cosine).clamp(-1, 1), (r[:, 2, 2] / cosine).clamp(-1, 1))
    z = torch.atan2((-r[:, 0, 1] / cosine).clamp(-1, 1), (r[:, 0, 0] / cosine).clamp(-1, 1))
    locked = (y.abs() - math.pi / 2).abs() < 1e-6
    z_locked = torch.atan2(r[:, 1, 0].clamp(-1, 1), r[:, 1, 1].clamp(-1, 1))
    return torch.where(locked, 0, x), y, torch.where(locked, z_locked, z)


def _rotation(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """X·Y·Z, (B, 3, 3), of the rotations about the axes."""

    def about(angle: Tensor, row: int, column: int) -> Tensor:
        matrix = torch.eye(3, dtype=angle.dtype).repeat(len(angle), 1, 1)
        cosine, sine = torch.cos(angle), torch.sin(angle)
        matrix[:, row, row], matrix[:, column, column] = cosine, cosine
        matrix[:, row, column], matrix[:, column, row] = -sine, sine
        return matrix

    return about(x, 1, 2) @ (about(y, 2, 0) @ about(z, 0, 1))
