r"""One step of the Carleman system: the matrix A, and its products without A.

The blocks are :math:`y_j = u^{\otimes j}`, j = 1 … N, in the full Kronecker basis or in the
symmetric one. The latter's coordinates are the monomials :math:`u^\alpha` times the square root of
their multinomial coefficient, so that it is an isometry: lengths, and hence probabilities, are
those of the full basis, and singular values a subset of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray

from torch_qsgd.carleman.polynomial import Coefficient, PolynomialMap

Array = NDArray[np.float64]
#: Numbers in a tensor that products work on at a time: 32 MiB, where one column is not larger.
CHUNK = 2**22
#: Tensors of the mode products, by the number of input modes that are left.
Partial = dict[int, Array]


# ---- Bases -------------------------------------------------------------------------------------


def block_size(n: int, j: int, basis: str) -> int:
    """Unknowns of block j: n^j, or C(n+j−1, j) in the monomial basis."""
    return math.comb(n + j - 1, j) if basis == "monomial" else n**j


@lru_cache(maxsize=64)
def monomials(n: int, degree: int) -> tuple[NDArray[np.int64], Array]:
    """The monomials of a degree: their sorted letters, and how many words each stands for.

    Returns:
        Words, of shape (C(n+j−1, j), j), in lexicographic order; multinomial coefficients.
    """
    count = block_size(n, degree, "monomial")
    letters = itertools.chain.from_iterable(
        itertools.combinations_with_replacement(range(n), degree)
    )
    words = np.fromiter(letters, np.int64, count * degree).reshape(count, degree)
    # j! divided, letter by letter, by how often each has come up so far.
    repeats = np.ones(words.shape)
    for i in range(1, degree):
        repeats[:, i] = 1 + (words[:, :i] == words[:, i : i + 1]).sum(1)
    return words, math.factorial(degree) / repeats.prod(1)


def _positions(words: NDArray[np.int64], n: int, degree: int) -> NDArray[np.int64]:
    """Where sorted words stand among the monomials."""
    places = n ** np.arange(degree - 1, -1, -1) if degree else np.zeros(0, np.int64)
    return np.searchsorted(monomials(n, degree)[0] @ places, words @ places)


@lru_cache(maxsize=16)
def symmetric_isometry(n: int, degree: int) -> sparse.csr_array:
    """S of shape (n^j, C(n+j−1, j)) with SᵀS = I, whose range are the symmetric tensors.

    Cost: j n^j integers.
    """
    words = np.stack(np.unravel_index(np.arange(n**degree), (n,) * degree), axis=1)
    words.sort(axis=1)
    column = _positions(words, n, degree)
    multiplicity = monomials(n, degree)[1]
    shape = (n**degree, len(multiplicity))
    value = 1 / np.sqrt(multiplicity[column])
    return sparse.csr_array((value, (np.arange(n**degree), column)), shape=shape)


@lru_cache(maxsize=64)
def _merge(n: int, a: int, b: int) -> sparse.csr_array:
    """Multiplication of monomials, S_{a+b}ᵀ (S_a ⊗ S_b), without the full tensors."""
    (left, left_count), (right, right_count) = monomials(n, a), monomials(n, b)
    words = np.concatenate(
        [np.repeat(left, len(right), axis=0), np.tile(right, (len(left), 1))], axis=1
    )
    words.sort(axis=1)
    rows = _positions(words, n, a + b)
    count = monomials(n, a + b)[1]
    values = np.sqrt(np.outer(left_count, right_count).ravel() / count[rows])
    shape = (len(count), len(rows))
    return sparse.csr_array((values, (rows, np.arange(len(rows)))), shape=shape)


def block_powers(z: Array, order: int, basis: str) -> Array:
    """(z, z⊗z, …) to order N, in the basis: shape (D,)."""
    if basis == "monomial":
        pairs = (monomials(z.size, j) for j in range(1, order + 1))
        return np.concatenate([np.sqrt(count) * z[words].prod(1) for words, count in pairs])
    powers = [z]
    for _ in range(order - 1):
        powers.append(np.multiply.outer(powers[-1], z).ravel())
    return np.concatenate(powers)


# ---- The matrix --------------------------------------------------------------------------------


def step_matrix(
    step: PolynomialMap, order: int, eta_orders: str = "all", basis: str = "kronecker"
) -> tuple[sparse.csr_array, Array]:
    r"""A and the forcing b of :math:`y(t+1) = A y(t) + b`, truncated at order N.

    .. math::
        A_{jk} = \sum_q G_q \otimes A_{j-1,\,k-q}, \qquad A_{00} = 1,

    which is the sum over all :math:`q_1 + … + q_j = k` of
    :math:`G_{q_1} \otimes … \otimes G_{q_j}`; :math:`b_j = A_{j0}`.

    Args:
        step: the map; in the homogeneous form, that of z.
        order: N.
        eta_orders: ``"all"``, or ``"first"`` to keep terms with at most one factor other than
            the identity, which is the Euler step of the continuous-time system.
        basis: ``"kronecker"`` or ``"monomial"``.

    Returns:
        A of shape (D, D) with D = Σ_j :func:`block_size`, and b of shape (D,).

    Cost: proportional to the non-zeros of A, N P times.
    """
    n = step.dimension
    factors = _factors(step, basis)
    sizes = [1, *(block_size(n, j, basis) for j in range(1, order + 1))]

    def product(a: sparse.csr_array, b: sparse.csr_array, j: int, q: int, k: int) -> Coefficient:
        kron = sparse.csr_array(sparse.kron(a, b, format="csr"))
        if basis == "kronecker":
            return kron
        return sparse.csr_array(_merge(n, 1, j - 1) @ kron @ _merge(n, q, k - q).T)

    rows = [{0: sparse.csr_array(np.ones((1, 1)))}]
    if eta_orders == "all":
        for j in range(1, order + 1):
            row: dict[int, sparse.csr_array] = {}
            for q, factor in factors.items():
                for k, rest in rows[j - 1].items():
                    if k + q <= order:
                        term = product(factor, rest, j, q, k + q)
                        row[k + q] = row[k + q] + term if k + q in row else term
            rows.append(row)
    else:
        identity = sparse.csr_array(sparse.eye_array(n))
        changes = {**factors, 1: sparse.csr_array(factors[1] - identity)}
        first: dict[int, sparse.csr_array] = {}  # Σ over the place of the one factor
        for j in range(1, order + 1):
            row = {k + 1: product(identity, rest, j, 1, k + 1) for k, rest in first.items()}
            others = sparse.csr_array(sparse.eye_array(sizes[j - 1]))
            for q, factor in changes.items():
                if (k := j - 1 + q) <= order:
                    term = product(factor, others, j, q, k)
                    row[k] = row[k] + term if k in row else term
            first = row
            whole = dict(row)
            whole[j] = whole[j] + sparse.eye_array(sizes[j])
            rows.append(whole)
    blocks = [
        [rows[j].get(k, sparse.csr_array((sizes[j], sizes[k]))) for k in range(order + 1)]
        for j in range(1, order + 1)
    ]
    whole_matrix = sparse.csr_array(sparse.block_array(blocks, format="csr"))
    forcing = np.asarray(whole_matrix[:, [0]].toarray()).ravel()
    return sparse.csr_array(whole_matrix[:, 1:]), forcing


def _factors(step: PolynomialMap, basis: str) -> dict[int, sparse.csr_array]:
    """G_q on the chosen basis of its inputs; zero ones left out, but never G_1."""
    n = step.dimension
    factors: dict[int, sparse.csr_array] = {1: sparse.csr_array((n, n))}
    for q, c in enumerate(step.coefficients):
        factor = sparse.csr_array(c.reshape(-1, 1) if c.ndim == 1 else c)
        if basis == "monomial" and q > 1:
            factor = sparse.csr_array(factor @ symmetric_isometry(n, q))
        if factor.nnz or q == 1:
            factors[q] = factor
    return factors


def nonzeros(counts: Sequence[int], n: int, order: int, basis: str = "kronecker") -> int:
    """Upper bound of the non-zeros of A and b, from those of G_0 … G_P, before it is built."""
    rows: list[dict[int, int]] = [{0: 1}]
    for j in range(1, order + 1):
        row: dict[int, int] = {}
        for q, count in enumerate(counts):
            for k, rest in rows[j - 1].items():
                if count and k + q <= order:
                    row[k + q] = row.get(k + q, 0) + count * rest
        sizes = {k: block_size(n, j, basis) * block_size(n, k, basis) for k in row}
        rows.append({k: min(total, sizes[k]) for k, total in row.items()})
    identity = sum(block_size(n, j, basis) for j in range(1, order + 1))
    return identity + sum(sum(row.values()) for row in rows[1:])


# ---- Products without the matrix ---------------------------------------------------------------


class StepOperator:
    r"""Products with A and Aᵀ by mode products: A is never built.

    All orders of η are two passes, for a polynomial map is one without constant term followed by
    a translation, and so are their Carleman matrices, also truncated:
    :math:`A = \mathrm{shift}(G_0) \cdot \mathrm{lift}(G_1, G_2, …)`. No intermediate tensor is
    larger than the largest block of the Kronecker basis, n^N, in which it works, also for the
    monomial one; columns go through it a few at a time.

    Args:
        step, order, eta_orders, basis: as in :func:`step_matrix`.

    Cost: of a product about N² P mode products, each of n^{N+1} multiplications.
    """

    def __init__(
        self, step: PolynomialMap, order: int, eta_orders: str = "all", basis: str = "kronecker"
    ) -> None:
        self._n, self._order, self._basis = step.dimension, order, basis
        factors = _factors(step, "kronecker")
        dense = {
            q: f if f.nnz < 0.1 * math.prod(f.shape) else f.toarray() for q, f in factors.items()
        }
        identity = np.eye(self._n) if self._n <= 256 else sparse.eye_array(self._n, format="csr")
        self._passes: list[dict[int, Coefficient]]
        self._first = eta_orders == "first"
        if self._first:
            self._passes = [{**dense, 1: dense[1] - identity}]
        else:
            lift = {q: f for q, f in dense.items() if q > 0}
            self._passes = [lift]
            if 0 in dense:
                self._passes.append({0: dense[0], 1: identity})
        self.sizes = [block_size(self._n, j, basis) for j in range(1, order + 1)]

    @property
    def size(self) -> int:
        """D, the unknowns of one time step."""
        return sum(self.sizes)

    def forcing(self) -> Array:
        """b, of shape (D,): the image of the constant 1."""
        order, n = self._order, self._n
        start = [np.ones((1, 1)), *(np.zeros((n**k, 1)) for k in range(1, order + 1))]
        return self._leave(self._forward(start))[:, 0]

    def apply(self, y: Array) -> Array:
        """A y, of shape (D, B), for y of shape (D, B)."""
        return self._by_columns(self._apply, y)

    def _apply(self, y: Array) -> Array:
        return self._leave(self._forward([np.zeros((1, y.shape[1])), *self._enter(y)]))

    def apply_transposed(self, y: Array) -> Array:
        """Aᵀ y, of shape (D, B), for y of shape (D, B)."""
        return self._by_columns(self._apply_transposed, y)

    def _by_columns(self, product: Callable[[Array], Array], y: Array) -> Array:
        width = max(1, CHUNK // self._n**self._order)
        if y.shape[1] <= width:
            return product(y)
        parts = [product(y[:, i : i + width]) for i in range(0, y.shape[1], width)]
        return np.concatenate(parts, axis=1)

    def _apply_transposed(self, y: Array) -> Array:
        blocks = [np.zeros((1, y.shape[1])), *self._enter(y)]
        if self._first:
            blocks = _add(blocks, self._single_transposed(blocks))
        else:
            for factors in reversed(self._passes):
                blocks = self._multiple_transposed(blocks, factors)
        return self._leave(blocks[1:])

    def _forward(self, blocks: list[Array]) -> list[Array]:
        """Of y_0 … y_N, in the Kronecker basis, the images 1 … N."""
        if self._first:
            return _add(blocks, self._single(blocks))[1:]
        for factors in self._passes:
            blocks = self._multiple(blocks, factors)
        return blocks[1:]

    # A partial tensor has shape (n^r, n^d · B): r input modes left, d output modes done. A step
    # consumes the last q input modes and puts one output mode before those done.

    def _multiple(self, blocks: list[Array], factors: dict[int, Coefficient]) -> list[Array]:
        partial: Partial = dict(enumerate(blocks))
        images = [partial[0]]
        for done in range(self._order):
            partial = self._step(partial, factors, done)
            images.append(partial.get(0, np.zeros(0)))
        return self._shaped(images, blocks[0].shape[1])

    def _step(self, partial: Partial, factors: dict[int, Coefficient], done: int) -> Partial:
        following: Partial = {}
        for q, factor in factors.items():
            for r, tensor in partial.items():
                left = r - q
                if left < 0 or left + done + 1 > self._order:
                    continue
                term = self._contract(factor, tensor, left, q)
                following[left] = following[left] + term if left in following else term
        return following

    def _contract(self, factor: Coefficient, tensor: Array, left: int, modes: int) -> Array:
        n = self._n
        cube = tensor.reshape(n**left, factor.shape[1], -1)
        if sparse.issparse(factor):
            flat = np.moveaxis(cube, 1, 0).reshape(factor.shape[1], -1)
            image = np.moveaxis((factor @ flat).reshape(factor.shape[0], n**left, -1), 0, 1)
        else:
            image = np.matmul(factor, cube)
        return np.asarray(image.reshape(n**left, -1))

    def _multiple_transposed(
        self, blocks: list[Array], factors: dict[int, Coefficient]
    ) -> list[Array]:
        # The same steps, backwards: after step d, block d's own gradient enters.
        width = blocks[0].shape[1]
        partial: Partial = {}
        for done in range(self._order, -1, -1):
            own = blocks[done].reshape(1, -1)
            partial[0] = partial[0] + own if 0 in partial else own
            if done:
                partial = self._step_transposed(partial, factors, done - 1)
        return self._shaped([partial.get(k, np.zeros(0)) for k in range(self._order + 1)], width)

    def _step_transposed(
        self, partial: Partial, factors: dict[int, Coefficient], done: int
    ) -> Partial:
        preceding: Partial = {}
        for q, factor in factors.items():
            for left, tensor in partial.items():
                r = left + q
                if r + done > self._order:
                    continue
                term = self._contract(factor.T, tensor, left, 1).reshape(self._n**r, -1)
                preceding[r] = preceding[r] + term if r in preceding else term
        return preceding

    def _single(self, blocks: list[Array]) -> list[Array]:
        """Σ over the place of one factor: y_{j−1+q} to j."""
        (factors,) = self._passes
        width = blocks[0].shape[1]
        images = [np.zeros((self._n**j, width)) for j in range(self._order + 1)]
        for q, factor in factors.items():
            for j in range(1, self._order + 1):
                if (k := j - 1 + q) <= self._order:
                    for place in range(j):
                        cube = blocks[k].reshape(self._n**place, -1)
                        images[j] += self._contract(factor, cube, place, q).reshape(-1, width)
        return images

    def _single_transposed(self, blocks: list[Array]) -> list[Array]:
        (factors,) = self._passes
        width = blocks[0].shape[1]
        images = [np.zeros((self._n**k, width)) for k in range(self._order + 1)]
        for q, factor in factors.items():
            for j in range(1, self._order + 1):
                if (k := j - 1 + q) <= self._order:
                    for place in range(j):
                        cube = blocks[j].reshape(self._n**place, -1)
                        images[k] += self._contract(factor.T, cube, place, 1).reshape(-1, width)
        return images

    def _shaped(self, images: list[Array], width: int) -> list[Array]:
        return [
            image.reshape(-1, width) if image.size else np.zeros((self._n**j, width))
            for j, image in enumerate(images)
        ]

    def _enter(self, y: Array) -> list[Array]:
        blocks = np.split(y, np.cumsum(self.sizes)[:-1])
        if self._basis == "kronecker":
            return list(blocks)
        return [symmetric_isometry(self._n, j) @ b for j, b in enumerate(blocks, start=1)]

    def _leave(self, blocks: list[Array]) -> Array:
        if self._basis == "monomial":
            blocks = [symmetric_isometry(self._n, j).T @ b for j, b in enumerate(blocks, start=1)]
        return np.concatenate(blocks)


def _add(a: list[Array], b: list[Array]) -> list[Array]:
    return [x + y for x, y in zip(a, b, strict=True)]
