"""Carleman matrices written out: every Kronecker product of every composition, densely."""

from __future__ import annotations

import itertools
from functools import reduce

import numpy as np

from torch_qsgd.carleman.polynomial import PolynomialMap


def random_map(
    rng: np.random.Generator,
    n: int,
    degree: int = 2,
    *,
    forcing: float = 0.05,
    linear: float = 0.8,
    higher: float = 0.1,
) -> PolynomialMap:
    """A map with symmetric coefficients of given spectral norms, as derivatives have."""
    coefficients = []
    for q in range(degree + 1):
        tensor = rng.standard_normal((n,) * (q + 1))
        slots = itertools.permutations(range(1, q + 1))
        tensor = sum(np.transpose(tensor, (0, *order)) for order in slots)
        matrix = np.reshape(tensor, (n, -1))
        size = (forcing, linear, higher)[min(q, 2)]
        coefficients.append(size * matrix / np.linalg.norm(matrix, 2))
    coefficients[0] = coefficients[0].ravel()
    return PolynomialMap(*coefficients)


def dense_factors(step: PolynomialMap) -> list[np.ndarray]:
    return [np.asarray(c.todense() if hasattr(c, "todense") else c) for c in step.coefficients]


def lifted(step: PolynomialMap) -> list[np.ndarray]:
    """P_0 = 0, P_1, … of z = (1, u), entry by entry."""
    n = step.dimension
    factors = dense_factors(step)
    found = [np.zeros((n + 1, 1))]
    for q in range(1, max(len(factors), 2)):
        P = np.zeros((n + 1, *[n + 1] * q))
        G = factors[q].reshape((n,) * (q + 1)) if q < len(factors) else np.zeros((n,) * (q + 1))
        for index in np.ndindex(*G.shape):
            P[tuple(i + 1 for i in index)] = G[index]
        if q == 1:
            P[0, 0] = 1
            P[1:, 0] = factors[0]
        found.append(P.reshape(n + 1, -1))
    return found


def dense_step(
    factors: list[np.ndarray], order: int, eta_orders: str = "all"
) -> tuple[np.ndarray, np.ndarray]:
    """A and b by enumerating all (q_1, …, q_j); with "first", one factor differs from I."""
    n = len(factors[1])
    factors = [factors[0].reshape(n, 1), *factors[1:]]
    sizes = [n**j for j in range(order + 1)]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    whole = np.zeros((starts[-1], starts[-1]))
    for j in range(1, order + 1):
        for degrees in itertools.product(range(len(factors)), repeat=j):
            k = sum(degrees)
            if k > order:
                continue
            terms = []
            if eta_orders == "all":
                terms = [reduce(np.kron, (factors[q] for q in degrees))]
            else:
                for place, q in enumerate(degrees):
                    if all(d == 1 for i, d in enumerate(degrees) if i != place):
                        change = factors[q] - np.eye(n) if q == 1 else factors[q]
                        parts = [np.eye(n)] * j
                        parts[place] = change
                        terms.append(reduce(np.kron, parts))
            block = (slice(starts[j], starts[j + 1]), slice(starts[k], starts[k + 1]))
            for term in terms:
                whole[block] += term
        if eta_orders == "first":
            own = slice(starts[j], starts[j + 1])
            whole[own, own] += np.eye(sizes[j])
    return whole[1:, 1:], whole[1:, 0]


def powers(z: np.ndarray, order: int) -> np.ndarray:
    return np.concatenate([reduce(np.kron, [z] * j) for j in range(1, order + 1)])


def dense_history(
    steps: list[tuple[np.ndarray, np.ndarray]], first: np.ndarray, idle: int = 0
) -> np.ndarray:
    """y(0), y(1), … by the plain loop."""
    states = [first]
    for A, b in steps:
        states.append(A @ states[-1] + b)
    return np.stack([*states, *[states[-1]] * idle])
