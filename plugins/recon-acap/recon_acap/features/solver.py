"""Sparse linear maps and solves that torch differentiates, on whatever device their argument is."""

from __future__ import annotations

import atexit
import warnings
from typing import Any
from weakref import WeakSet

import cholespy
import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from torch import Tensor

WIDEST = 128
"""Right-hand sides that cholespy takes at once on a GPU."""


class SparseMap:
    """A constant sparse matrix (M, N) times (N, C), with the gradient by its transpose."""

    def __init__(self, matrix: scipy.sparse.spmatrix) -> None:
        self._matrix = matrix.tocsr().astype(np.float64)
        self._matrix.sort_indices()
        self._kept: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Float[Tensor, "N C"]) -> Float[Tensor, "M C"]:
        return _Product.apply(x, *self._on(x))

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_kept": {}}

    def _on(self, x: Tensor) -> tuple[Tensor, Tensor]:
        key = (x.device, x.dtype)
        if key not in self._kept:
            self._kept[key] = (_csr(self._matrix, *key), _csr(self._matrix.T.tocsr(), *key))
        return self._kept[key]


def _csr(matrix: scipy.sparse.csr_matrix, device: torch.device, dtype: torch.dtype) -> Tensor:
    parts = (torch.from_numpy(matrix.indptr), torch.from_numpy(matrix.indices), torch.from_numpy(matrix.data).to(dtype))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        with torch.sparse.check_sparse_tensor_invariants():
            return torch.sparse_csr_tensor(*parts, size=matrix.shape, device=device)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
        ctx.matrices = (transpose, matrix)
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(grad, *ctx.matrices), None, None


_systems: WeakSet[FactorisedSystem] = WeakSet()


@atexit.register
def _forget_factors() -> None:
    """Factors that outlive Python's shutdown make cholespy's bindings print a page of warnings."""
    for system in _systems:
        system.forget()


class FactorisedSystem:
    """A symmetric positive definite sparse matrix (N, N), factorised once a device; solves by back-substitution.

    Works in float64 whatever the right-hand side's type: a Laplacian's condition number times float32's precision
    is millimetres on a body.
    """

    def __init__(self, matrix: scipy.sparse.spmatrix) -> None:
        self._matrix = matrix.tocoo()
        self._kept: dict[torch.device, cholespy.CholeskySolverD] = {}
        _systems.add(self)

    def __call__(self, b: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        return _Solve.apply(b, self)

    def solve(self, b: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """x with A x = b, outside of autograd."""
        right = b.detach().double().contiguous()
        out = torch.zeros_like(right)
        if not right.shape[1]:  # cholespy crashes
            return out.to(b.dtype)
        factor = self._on(b.device)
        if b.device.type == "cpu" or right.shape[1] <= WIDEST:
            factor.solve(right, out)
        else:
            for columns in torch.arange(right.shape[1], device=b.device).split(WIDEST):
                part = out[:, columns].contiguous()
                factor.solve(right[:, columns].contiguous(), part)
                out[:, columns] = part
        return out.to(b.dtype)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_kept": {}}  # factors cannot be copied; a copy factorises again

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _systems.add(self)

    def forget(self) -> None:
        """Free the factors; the next solve makes them again."""
        self._kept.clear()

    def _on(self, device: torch.device) -> cholespy.CholeskySolverD:
        if device not in self._kept:
            matrix = self._matrix
            row, column = (torch.from_numpy(i.astype(np.int32)).to(device) for i in (matrix.row, matrix.col))
            data = torch.from_numpy(matrix.data.astype(np.float64)).to(device)
            kind = cholespy.MatrixType.COO
            self._kept[device] = cholespy.CholeskySolverD(matrix.shape[0], row, column, data, kind)
        return self._kept[device]


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, b: Tensor, system: FactorisedSystem) -> Tensor:
        ctx.system = system
        return system.solve(b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # The matrix is symmetric: the gradient of a solve is the same solve.
        return _Solve.apply(grad, ctx.system), None
