"""Systems of linear equations, inverses, determinants and the Cholesky factor, of small matrices.

A column after the other, with each elementary operation rounded. It is the textbook's algorithm,
which LAPACK's unblocked one is; libraries block and fuse it for large matrices.
"""

from __future__ import annotations

import torch

from morphbits.engines.native.rules.arithmetic import Operator
from morphbits.engines.native.rules.registry import refused, rule

T = torch.Tensor
_LU = "LU with partial pivoting, right-looking: a column is divided by its pivot; aij − lik·ukj"
_SOLVE = "by columns: an unknown is a right side divided by the diagonal; bi − aij·xj"


def _factored(op: Operator, a_BNN: T) -> tuple[T, T, T]:
    """L and U in one matrix, the exchanges of rows as LAPACK numbers them (B, N), and for each
    matrix the number of its first pivot that is 0 (else 0), (B,)."""
    lu, (batch, n) = a_BNN.clone(), a_BNN.shape[:2]
    pivots = torch.empty((batch, n), dtype=torch.int32)
    info = torch.zeros(batch, dtype=torch.int32)
    rows = torch.arange(batch)
    for k in range(n):
        at = lu[:, k:, k].abs().argmax(1) + k
        pivots[:, k] = at + 1
        first, chosen = lu[:, k].clone(), lu[rows, at].clone()
        lu[rows, at], lu[:, k] = first, chosen
        pivot = lu[:, k, k]
        info[(pivot == 0) & (info == 0)] = k + 1
        if k + 1 < n:
            divided = op.div(lu[:, k + 1 :, k], torch.where(pivot == 0, 1, pivot)[:, None])
            lu[:, k + 1 :, k] = divided
            products = op.mul(divided[:, :, None], lu[:, k, None, k + 1 :])
            lu[:, k + 1 :, k + 1 :] = op.sub(lu[:, k + 1 :, k + 1 :], products)
    return lu, pivots, info


def _substituted(op: Operator, a_BNN: T, b_BNM: T, upper: bool, unit: bool) -> T:
    """X with a·X = b, for a triangular matrix (`unit`: with ones on its diagonal)."""
    x, n = b_BNM.clone(), a_BNN.shape[1]
    for k in reversed(range(n)) if upper else range(n):
        if not unit:
            x[:, k] = op.div(x[:, k], a_BNN[:, k, k, None])
        rest = slice(0, k) if upper else slice(k + 1, n)
        if rest.start < rest.stop:
            products = op.mul(a_BNN[:, rest, k, None], x[:, k, None])
            x[:, rest] = op.sub(x[:, rest], products)
    return x


def _exchanged(x_BNM: T, pivots_BN: T, back: bool) -> T:
    """The rows after the exchanges of a factorization, or before them."""
    x, rows = x_BNM.clone(), torch.arange(len(x_BNM))
    n = pivots_BN.shape[1]
    for k in reversed(range(n)) if back else range(n):
        at = pivots_BN[:, k].long() - 1
        first, other = x[:, k].clone(), x[rows, at].clone()
        x[rows, at], x[:, k] = first, other
    return x


def _solved(op: Operator, lu_BNN: T, pivots_BN: T, b_BNM: T, transposed: bool) -> T:
    """X with a·X = b or aᵀ·X = b, for the matrix a that was factored."""
    if not transposed:
        y = _substituted(op, lu_BNN, _exchanged(b_BNM, pivots_BN, False), upper=False, unit=True)
        return _substituted(op, lu_BNN, y, upper=True, unit=False)
    y = _substituted(op, lu_BNN.mT, b_BNM, upper=False, unit=False)
    x = _substituted(op, lu_BNN.mT, y, upper=True, unit=True)
    return _exchanged(x, pivots_BN, True)


def _flat(x: T, batch: torch.Size) -> T:
    """Matrices in one batch dimension."""
    return x.expand(*batch, *x.shape[-2:]).reshape(batch.numel(), *x.shape[-2:])


def _by_columns(x: T) -> T:
    """The same as LAPACK stores it; `layouts` then gives it torch's strides."""
    return x.mT.contiguous().mT


def _square(op: Operator, a: T, *others: T) -> None:
    op.check(a, *others)
    if a.dim() < 2 or a.shape[-1] != a.shape[-2] or any(a.dtype != x.dtype for x in others):
        refused(op.func, a, *others)


def _checked(info: T, name: str, a: T, check_errors: bool) -> None:
    if check_errors:
        torch._linalg_check_errors(info, name, is_matrix=a.dim() == 2)


@rule("_linalg_solve_ex", f"{_LU}; {_SOLVE}")
def _solve(
    op: Operator, a: T, b: T, *, left: bool = True, check_errors: bool = False
) -> tuple[T, T, T, T]:
    _square(op, a, b)
    vector = b.dim() == 1 or (a.dim() - 1 == b.dim() and b.shape == a.shape[:-1])
    right = b[..., None] if vector else b
    right = right if left else right.mT
    if right.dim() < 2 or right.shape[-2] != a.shape[-1]:
        refused(op.func, a, b)
    batch = torch.broadcast_shapes(a.shape[:-2], right.shape[:-2])
    lu, pivots, info = _factored(op, _flat(a, a.shape[:-2]))
    lu, pivots = lu.view(a.shape), pivots.view(a.shape[:-1])
    whole = _flat(lu, batch), _flat(pivots[..., None], batch)[..., 0]
    out = _solved(op, *whole, _flat(right, batch), transposed=not left)
    out = out.view(*batch, *right.shape[-2:])
    out = out if left else out.mT
    _checked(info.view(a.shape[:-2]), "torch.linalg.solve_ex", a, check_errors)
    out = out[..., 0] if vector else _by_columns(out)
    return out, _by_columns(lu), pivots, info.view(a.shape[:-2])


@rule("linalg_inv_ex", f"the solution for the identity: {_LU}; {_SOLVE}")
def _inverse(op: Operator, a: T, *, check_errors: bool = False) -> tuple[T, T]:
    _square(op, a)
    flat = _flat(a, a.shape[:-2])
    lu, pivots, info = _factored(op, flat)
    one = torch.eye(a.shape[-1], dtype=a.dtype).expand_as(flat)
    out = _solved(op, lu, pivots, one, transposed=False).view(a.shape)
    _checked(info.view(a.shape[:-2]), "linalg.inv_ex", a, check_errors)
    return _by_columns(out), info.view(a.shape[:-2])


@rule(
    "_linalg_det",
    f"{_LU} (of the transposed matrix where rows are stored); the product of the diagonal",
)
def _determinant(op: Operator, a: T) -> tuple[T, T, T]:
    _square(op, a)
    flat = _flat(a, a.shape[:-2])
    lu, pivots, _ = _factored(op, flat.mT if a.is_contiguous() else flat)
    product = op.chain("mul", lu.diagonal(dim1=1, dim2=2).T.contiguous())
    exchanges = (pivots != torch.arange(1, a.shape[-1] + 1)).sum(1)
    out = torch.where(exchanges % 2 == 1, -product, product)
    return out.view(a.shape[:-2]), _by_columns(lu.view(a.shape)), pivots.view(a.shape[:-1])


@rule("linalg_lu_solve", _SOLVE)
def _lu_solve(
    op: Operator, lu: T, pivots: T, b: T, *, left: bool = True, adjoint: bool = False
) -> T:
    _square(op, lu, b)
    right = b if left else b.mT
    if b.dim() < 2 or right.shape[-2] != lu.shape[-1]:
        refused(op.func, lu, pivots, b, left=left, adjoint=adjoint)
    batch = torch.broadcast_shapes(lu.shape[:-2], b.shape[:-2])
    whole = _flat(lu, batch), _flat(pivots[..., None], batch)[..., 0]
    out = _solved(op, *whole, _flat(right, batch), adjoint == left).view(*batch, *right.shape[-2:])
    return _by_columns(out if left else out.mT)


@rule("linalg_solve_triangular", _SOLVE)
def _solve_triangular(
    op: Operator, a: T, b: T, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> T:
    _square(op, a, b)
    if b.dim() < 2 or b.shape[-2 if left else -1] != a.shape[-1]:
        refused(op.func, a, b, upper=upper, left=left, unitriangular=unitriangular)
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    matrix, right = (_flat(x if left else x.mT, batch) for x in (a, b))
    out = _substituted(op, matrix, right, upper == left, unitriangular)
    out = out.view(*batch, *out.shape[-2:])
    return _by_columns(out if left else out.mT)


@rule(
    "linalg_cholesky_ex",
    "by columns: the root of the diagonal, which divides its column; aij − lik·ljk",
)
def _cholesky(
    op: Operator, a: T, *, upper: bool = False, check_errors: bool = False
) -> tuple[T, T]:
    _square(op, a)
    n, flat = a.shape[-1], _flat(a.mT if upper else a, a.shape[:-2]).clone()
    info = torch.zeros(len(flat), dtype=torch.int32)
    for k in range(n):
        info[~(flat[:, k, k] > 0) & (info == 0)] = k + 1
        flat[:, k, k] = op.sqrt(flat[:, k, k])
        if k + 1 < n:
            column = op.div(flat[:, k + 1 :, k], flat[:, k, k, None])
            flat[:, k + 1 :, k] = column
            products = op.mul(column[:, :, None], column[:, None, :])
            flat[:, k + 1 :, k + 1 :] = op.sub(flat[:, k + 1 :, k + 1 :], products)
    out = flat.tril().view(a.shape)
    _checked(info.view(a.shape[:-2]), "linalg.cholesky_ex", a, check_errors)
    return _by_columns(out.mT if upper else out), info.view(a.shape[:-2])
