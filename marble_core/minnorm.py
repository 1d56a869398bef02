"""The min-norm point of a simplex: weights alpha that minimise ||sum_k alpha_k g_k||, from the Gram matrix alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import cvxpy as cp
import numpy as np

TIE_BREAK = 1e-10  # among optima (duplicates, K > rank) prefer the one of least ||alpha||


def min_norm(G_KK: np.ndarray) -> np.ndarray:
    """alpha_K = argmin over the simplex of alpha^T G alpha, G positive semidefinite (float64).

    Raises ArithmeticError where the solver fails.
    """
    size = len(G_KK)
    if size == 1:
        return np.ones(1)
    problem, root, alpha = _problem(size)
    eigenvalues, vectors = np.linalg.eigh((G_KK + G_KK.T) / 2)
    scale = max(eigenvalues[-1], np.finfo(float).tiny)
    lifted = np.clip(eigenvalues / scale, 0, None) + TIE_BREAK
    root.value = np.sqrt(lifted)[:, None] * vectors.T
    try:
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13)
    except cp.SolverError as error:
        raise ArithmeticError(str(error)) from error
    if alpha.value is None:
        raise ArithmeticError(f"the solver ended with status {problem.status}")
    clean = np.clip(alpha.value, 0, None)
    return clean / clean.sum()


@cache
def _problem(size: int) -> tuple[cp.Problem, cp.Parameter, cp.Variable]:
    """Compiled once a size: a parametrised (DPP) problem in the matrix root L of the Gram matrix, ||L alpha||^2."""
    alpha: Any = cp.Variable(size)
    root: Any = cp.Parameter((size, size))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(root @ alpha)), [alpha >= 0, cp.sum(alpha) == 1])
    assert problem.is_dpp()
    return problem, root, alpha
