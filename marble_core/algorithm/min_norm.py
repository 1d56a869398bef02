"""The min-norm point of a simplex: weights alpha that minimise ||sum_k alpha_k g_k||, from the Gram matrix alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import cvxpy
import numpy as np

cp: Any = cvxpy  # its functions are made at import, where no type checker sees them
TIE_BREAK = (
    1e-11  # among optima (duplicates, K > rank) prefer the one of least ||gamma||, which is ||alpha|| for unit gradients
)


@dataclass(frozen=True)
class Limits:
    """floor_K <= alpha <= cap_K, and the wishes wish_QK alpha <= bound_Q."""

    floor_K: np.ndarray
    cap_K: np.ndarray
    wish_QK: np.ndarray
    bound_Q: np.ndarray

    @classmethod
    def none(cls, size: int) -> Limits:
        return cls(np.zeros(size), np.ones(size), np.zeros((0, size)), np.zeros(0))

    def of(self, active_K: np.ndarray) -> Limits:
        """The limits of the active rewards, the others being 0; a wish on an inactive reward is dropped with it."""
        kept_Q = ~(self.wish_QK[:, ~active_K] != 0).any(1)
        return Limits(self.floor_K[active_K], self.cap_K[active_K], self.wish_QK[kept_Q][:, active_K], self.bound_Q[kept_Q])


def min_norm(G_KK: np.ndarray, limits: Limits | None = None) -> np.ndarray:
    """alpha_K = argmin of alpha^T G alpha over the simplex and the limits, G positive semidefinite, in float64.

    It is solved in gamma_k = alpha_k / s_k, where s_k, a power of two, brings the gradients to about one length: whatever the ratio
    of their norms, none is then lost in the tie-break or below the solver's tolerance, which is one of gamma.
    Raises ArithmeticError where there is no solution or the solver fails.
    """
    size = len(G_KK)
    limits = limits or Limits.none(size)
    if not size:
        raise ArithmeticError("there is no gradient to weigh")
    if size == 1:
        return np.ones(1)
    s_K = _scales(np.diag(G_KK))
    # A cap of 1 binds nothing, and over small scales its slack would cost the solver its precision.
    problem = _problem(size, len(limits.bound_Q), capped=bool((limits.cap_K < 1).any() or (s_K == 1).all()))
    scaled_KK = G_KK * np.outer(s_K, s_K)
    eigenvalues, vectors = np.linalg.eigh((scaled_KK + scaled_KK.T) / 2)
    scale = max(eigenvalues[-1], np.finfo(float).tiny)
    problem.root.value = np.sqrt(np.clip(eigenvalues / scale, 0, None) + TIE_BREAK)[:, None] * vectors.T
    alpha_K = problem.solve(limits, s_K) * s_K
    clean_K = np.clip(alpha_K, limits.floor_K, None)
    return clean_K / clean_K.sum()


def _scales(squares_K: np.ndarray) -> np.ndarray:
    """Powers of two, at most 1, that bring gradients of these squared norms to about the least of their lengths; 1 for zeros."""
    there = squares_K > 0
    if not there.any():
        return np.ones(len(squares_K))
    half_exponent_K = np.round(np.log2(np.where(there, squares_K, 1.0)) / 2)
    return np.where(there, 2.0 ** (half_exponent_K[there].min() - half_exponent_K), 1.0)


def feasible(limits: Limits) -> bool:
    """Whether any weights meet all the limits."""
    size = len(limits.floor_K)
    try:
        min_norm(np.eye(size), limits)
    except ArithmeticError:
        return False
    return size > 1 or bool((limits.cap_K >= 1).all() and (limits.wish_QK.sum(1) <= limits.bound_Q).all())


@dataclass
class _Problem:
    """Compiled once: a parametrised (DPP) cvxpy problem in the matrix root L of the Gram matrix, ||L alpha||^2."""

    size: int
    wishes: int
    capped: bool
    problem: Any = field(init=False)

    def __post_init__(self) -> None:
        self.gamma: Any = cp.Variable(self.size)
        self.root: Any = cp.Parameter((self.size, self.size))
        self.floor: Any = cp.Parameter(self.size)
        self.cap: Any = cp.Parameter(self.size)
        self.scales: Any = cp.Parameter(self.size)
        capped = [self.gamma <= self.cap] if self.capped else []
        constraints = [self.gamma >= self.floor, *capped, self.scales @ self.gamma == 1]
        if self.wishes:
            self.W: Any = cp.Parameter((self.wishes, self.size))
            self.u: Any = cp.Parameter(self.wishes)
            constraints.append(self.W @ self.gamma <= self.u)
        self.problem = cp.Problem(cp.Minimize(cp.sum_squares(self.root @ self.gamma)), constraints)
        assert self.problem.is_dpp()

    def solve(self, limits: Limits, s_K: np.ndarray) -> np.ndarray:
        """gamma_K; the limits are those of alpha_K = s_K gamma_K."""
        self.floor.value, self.cap.value, self.scales.value = limits.floor_K / s_K, limits.cap_K / s_K, s_K
        if self.wishes:
            self.W.value, self.u.value = limits.wish_QK * s_K, limits.bound_Q
        try:
            self.problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13)
        except cp.SolverError as error:
            raise ArithmeticError(str(error)) from error
        if self.gamma.value is None:
            raise ArithmeticError(f"the solver ended with status {self.problem.status}")
        return np.asarray(self.gamma.value)


@cache
def _problem(size: int, wishes: int, capped: bool) -> _Problem:
    return _Problem(size, wishes, capped)
