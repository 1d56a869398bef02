"""One direction for gradients that disagree, by how much the exponent p trusts the many against the odd one.

    d_p = argmin over d of sum_k pi_k |ghat_k - d|^p        p = 1 geometric median, p = 2 mean, p = inf centre of the smallest ball

The centre of the smallest ball of unit vectors is the min-norm point of their hull, which is MARBLE's (``min_norm.py``): the odd
one has a veto there, and hardly a say at p = 1. Everything is done on the Gram matrix: d = sum_k a_k ghat_k with a in the simplex.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import cvxpy
import numpy as np

from marble_core.algorithm.min_norm import TIE_BREAK, Limits

cp: Any = cvxpy  # its functions are made at import, where no type checker sees them
SMOOTHING = 1e-12  # added to squared distances below p = 2, in units of a mean squared norm
CLOSE = 1e-9  # |T(d) - d| at which d is found, in units of a norm
MOST_STEPS = 5_000
ROUNDING = 1e-15  # relative, of a distance: near the minimum f falls by less
WITHIN = 1e-9  # by how much weights may miss a limit and still meet it


def trust_point(C_KK: np.ndarray, p: float, prior_K: np.ndarray, limits: Limits) -> np.ndarray:
    """Weights a_K of d_p, for p in [1, inf), the Gram matrix C of the vectors, and a prior (any scale) that is not all zero.

    With limits that the minimum over all d does not meet, d is the best of those that sum_k a_k ghat_k within the limits reach: a
    convex problem. Raises ArithmeticError where there is no solution or the solver fails.
    """
    if len(C_KK) == 1:
        return np.ones(1)
    C_KK = (C_KK + C_KK.T) / 2
    C_KK = C_KK / max(np.trace(C_KK) / len(C_KK), np.finfo(float).tiny)
    prior_K = prior_K / prior_K.sum()
    a_K = fixed_point(C_KK, p, prior_K)
    return a_K if a_K is not None and _within(a_K, limits) else _constrained(C_KK, p, prior_K, limits)


def fixed_point(C_KK: np.ndarray, p: float, prior_K: np.ndarray) -> np.ndarray | None:
    """The minimum without limits by Weiszfeld's iteration, or None where that takes too long.

    With r_k^2 = C_kk - 2 (C a)_k + a^T C a, the gradient of f(d) = sum_k pi_k r_k^p is p W (d - T(d)), where T(d) has the weights
    b_k = pi_k r_k^(p-2) / W. So d moves to d + eta (T(d) - d), which keeps a in the simplex:

    - p <= 2, eta = 1: T minimises sum_k pi_k r_k^(p-2)(old) r_k^2, a quadratic that touches f at the old d and lies above it (as
      r^p is concave in r^2), so f falls at every step. Squared distances have a tiny constant added, or a step that hits a vector
      would stay there.
    - p > 2: the Hessian lies between p W and p (p-1) W, so eta = 2/p is the best step of gradient descent near the minimum, and
      is halved until f falls by Armijo's rule, up to rounding; f is convex and coercive, so this converges to its minimum for every p.
    """
    smoothing = SMOOTHING if p < 2 else 0.0

    def distances(a_K: np.ndarray) -> np.ndarray:
        return np.maximum(np.diag(C_KK) - 2 * C_KK @ a_K + a_K @ C_KK @ a_K, 0.0) + smoothing

    def powers(r2_K: np.ndarray, exponent: float, unit: float) -> np.ndarray:
        return np.asarray(prior_K * (r2_K / unit) ** (exponent / 2))

    a_K = prior_K.copy()
    for _ in range(MOST_STEPS):
        r2_K = distances(a_K)
        unit = max(r2_K.max(), np.finfo(float).tiny)
        b_K = powers(r2_K, p - 2, unit if p > 2 else max(r2_K.min(), np.finfo(float).tiny))
        if not b_K.sum() > 0:  # all vectors are one
            return prior_K
        move_K = b_K / b_K.sum() - a_K
        length2 = float(max(move_K @ C_KK @ move_K, 0.0))
        if length2 <= CLOSE**2:
            return a_K
        eta = 1.0 if p <= 2 else 2 / p
        if p > 2:
            now = powers(r2_K, p, unit).sum() * (1 + ROUNDING * p)
            slope = p * b_K.sum() * length2 / unit
            while eta > 1e-12 and powers(distances(a_K + eta * move_K), p, unit).sum() > now - 1e-4 * eta * slope:
                eta /= 2
        a_K = a_K + eta * move_K
    return None


def _within(a_K: np.ndarray, limits: Limits) -> bool:
    wishes = (limits.wish_QK @ a_K <= limits.bound_Q + WITHIN).all()
    return bool((a_K >= limits.floor_K - WITHIN).all() and (a_K <= limits.cap_K + WITHIN).all() and wishes)


def _constrained(C_KK: np.ndarray, p: float, prior_K: np.ndarray, limits: Limits) -> np.ndarray:
    """The same with the limits as constraints on a, by cvxpy: second-order cones for the distances, power cones for their p-norm."""
    problem = _problem(len(C_KK), len(limits.bound_Q), float(p))
    values, vectors = np.linalg.eigh(C_KK)
    problem.root.value = np.sqrt(np.clip(values, 0, None) + TIE_BREAK)[:, None] * vectors.T
    problem.weight.value = prior_K ** (1 / p)
    a_K = np.clip(problem.solve(limits), limits.floor_K, None)
    return np.asarray(a_K / a_K.sum())


@dataclass
class _Problem:
    """Compiled once for a number of rewards and wishes and a p, with the matrix root of the Gram matrix as a parameter."""

    size: int
    wishes: int
    p: float
    problem: Any = field(init=False)

    def __post_init__(self) -> None:
        self.a: Any = cp.Variable(self.size)
        far: Any = cp.Variable(self.size)
        self.root: Any = cp.Parameter((self.size, self.size))
        self.weight: Any = cp.Parameter(self.size, nonneg=True)
        self.floor: Any = cp.Parameter(self.size)
        self.cap: Any = cp.Parameter(self.size)
        point = self.root @ self.a
        constraints = [self.a >= self.floor, self.a <= self.cap, cp.sum(self.a) == 1]
        constraints += [cp.norm(self.root[:, k] - point) <= far[k] for k in range(self.size)]
        if self.wishes:
            self.W: Any = cp.Parameter((self.wishes, self.size))
            self.u: Any = cp.Parameter(self.wishes)
            constraints.append(self.W @ self.a <= self.u)
        weighed: Any = cp.multiply(self.weight, far)
        norm, parts = cp.sum(weighed), cp.Variable(self.size)
        if self.p > 1:  # |x|_p <= norm where parts_k >= |x_k|^p norm^(1-p) add up to norm
            norm = cp.Variable()
            constraints += [cp.PowCone3D(parts, norm * np.ones(self.size), weighed, 1 / self.p), cp.sum(parts) == norm]
        self.problem = cp.Problem(cp.Minimize(norm), constraints)
        assert self.problem.is_dpp()

    def solve(self, limits: Limits) -> np.ndarray:
        self.floor.value, self.cap.value = limits.floor_K, limits.cap_K
        if self.wishes:
            self.W.value, self.u.value = limits.wish_QK, limits.bound_Q
        try:
            with warnings.catch_warnings():  # of a solution that is less exact than was asked for, which is about 1e-7 then
                warnings.simplefilter("ignore", UserWarning)
                self.problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
        except cp.SolverError as error:
            raise ArithmeticError(str(error)) from error
        if self.a.value is None:
            raise ArithmeticError(f"the solver ended with status {self.problem.status}")
        return np.asarray(self.a.value)


@cache
def _problem(size: int, wishes: int, p: float) -> _Problem:
    return _Problem(size, wishes, p)
