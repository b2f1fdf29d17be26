"""The sparse form and the singular values of a layer's effective matrix, without writing the matrix out.

A permuted-Kronecker map J2 (I ⊗ W) J1 has the singular values of W, each as often as there are blocks, since
permutations are orthogonal; untied, it has those of all blocks together. For a sparse map that is too large for a
dense decomposition, Lanczos iterations find the extreme singular values from products with vectors.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from mixersweep.layers.base import SparseMap
from mixersweep.layers.factors import BesideDiagonal, Factors
from mixersweep.layers.kronecker import PermutedKronecker
from mixersweep.layers.sparse import SparseWeights

Floats = NDArray[np.float64]

DENSE_SIDE = 768
"""The smaller side up to which a sparse map is decomposed as a dense matrix: under a second, and exact."""

SMALL_SIDE = 128
"""The smaller side up to which a dense decomposition costs less than Lanczos iterations."""

PRODUCT_SIDE = 2048
"""The smaller side up to which a product of factors is decomposed as a dense matrix: some seconds, and exact."""

FACTORED_SIDE = 6144
"""The side up to which the smallest singular value of a sparse map is computed: its factorisation fills in."""


@dataclass(frozen=True)
class Extremes:
    """The largest and the smallest of the min(rows, columns) singular values of a matrix.

    ``smallest`` is None where the matrix is too large to find it, ``condition`` also where the smallest is 0.
    """

    largest: float
    smallest: float | None

    @property
    def condition(self) -> float | None:
        """The condition number, largest over smallest, or None."""
        if self.smallest is None or self.smallest <= self.largest * 1e-13:
            return None
        return self.largest / self.smallest


def to_sparse(layer: SparseMap) -> sp.csr_array:
    """Return the effective matrix (out_width, in_width) in float64, with an entry for each connection, even zeros."""
    if isinstance(layer, PermutedKronecker):
        out, size = layer.out_size, layer.in_size
        middle = layer.after.indices().numpy()  # row i of the product is row middle[i] of the blocks
        block_of, row_of = middle // out, middle % out
        blocks = layer.weight.detach().expand(layer.blocks, out, size).double().cpu().numpy()
        columns = layer.before.indices().numpy()[block_of[:, None] * size + np.arange(size)]
        starts = np.arange(0, layer.out_width * size + 1, size)
        matrix = sp.csr_array(
            (blocks[block_of, row_of].ravel(), columns.ravel(), starts), (layer.out_width, layer.in_width)
        )
        matrix.sort_indices()
        return matrix
    if isinstance(layer, SparseWeights):
        values = layer.values().detach().double().cpu().numpy()
        indices = (layer.column_of.cpu().numpy(), layer.row_starts.cpu().numpy())
        return sp.csr_array((values, *indices), (layer.out_width, layer.in_width))
    dense = layer.to_dense().detach().double().cpu().numpy()
    if isinstance(layer, BesideDiagonal):
        rank, own = layer.rank, np.arange(layer.out_width)[:, None]
        columns = np.hstack([np.tile(np.arange(rank), (layer.out_width, 1)), rank + own])
        values = np.take_along_axis(dense, columns, 1)
        starts = np.arange(0, values.size + 1, rank + 1)
        return sp.csr_array((values.ravel(), columns.ravel(), starts), dense.shape)
    columns = np.tile(np.arange(dense.shape[1]), dense.shape[0])
    return sp.csr_array((dense.ravel(), columns, np.arange(0, dense.size + 1, dense.shape[1])), dense.shape)


def singular_values(layer: SparseMap) -> Floats:
    """Return all min(out_width, in_width) singular values in descending order, float64.

    A permuted-Kronecker map costs a decomposition of its blocks; any other map that of a dense matrix, so that
    ``extremes`` is better for wide sparse ones.
    """
    if isinstance(layer, PermutedKronecker):
        of_blocks = torch.linalg.svdvals(layer.weight.detach().double().cpu()).numpy()
        every = np.tile(of_blocks, layer.blocks) if layer.tied else of_blocks.ravel()
        return np.sort(every)[::-1]
    values: Floats = torch.linalg.svdvals(layer.to_dense().detach().double().cpu()).numpy()
    return values


def extremes(layer: SparseMap) -> Extremes:
    """Return the largest and the smallest singular value of a layer's effective matrix."""
    if isinstance(layer, SparseWeights) and min(layer.in_width, layer.out_width) > DENSE_SIDE:
        return extremes_of(to_sparse(layer))
    if isinstance(layer, PermutedKronecker):
        values = torch.linalg.svdvals(layer.weight.detach().double().cpu())
        return Extremes(float(values.max()), float(values.min()))
    values = singular_values(layer)
    return Extremes(float(values[0]), float(values[-1]))


def extremes_of_product(left: PermutedKronecker, right: PermutedKronecker) -> Extremes:
    """Return the extreme singular values of the product left · right, such as a Monarch matrix J_cᵀ L J_c R.

    Two tied factors that form a Kronecker product have as singular values all products of one of each; untied factors
    are multiplied as sparse matrices.
    """
    if left.tied and right.tied and right.mixes_rows and left.in_size == right.blocks:
        one, other = (torch.linalg.svdvals(factor.weight.detach().double().cpu()) for factor in (left, right))
        return Extremes(float(one.max() * other.max()), float(one.min() * other.min()))
    product = (to_sparse(left) @ to_sparse(right)).tocsr()
    if min(product.shape) <= DENSE_SIDE:
        values = np.linalg.svd(product.toarray(), compute_uv=False)
        return Extremes(float(values[0]), float(values[-1]))
    return extremes_of(product)


def extremes_of_factors(layer: Factors) -> Extremes:
    """Return the extreme singular values of a product of factors, whose effective matrix may be dense.

    Above ``PRODUCT_SIDE`` only the largest is found, from products of the sparse factors with vectors.
    """
    if min(layer.in_width, layer.out_width) <= PRODUCT_SIDE:
        values = torch.linalg.svdvals(layer.to_dense().detach().double().cpu())
        return Extremes(float(values[0]), float(values[-1]))
    return Extremes(_by_lanczos(_operator(layer), 1e-10), None)


def _operator(layer: Factors) -> Any:
    """Return the effective matrix of a product as an operator on vectors, in float64."""
    from scipy.sparse.linalg import LinearOperator

    exact = copy.deepcopy(layer).cpu().double().requires_grad_(False)
    zero = torch.zeros(1, layer.in_width, dtype=torch.float64)

    def times(x: Floats) -> Floats:
        found: Floats = (exact(torch.from_numpy(x).view(1, -1)) - exact(zero)).numpy()[0]
        return found

    def transposed_times(y: Floats) -> Floats:
        with torch.enable_grad():
            x = zero.clone().requires_grad_()
            (found,) = torch.autograd.grad(exact(x), x, torch.from_numpy(y).view(1, -1))
        gradient: Floats = found.numpy()[0]
        return gradient

    shape = layer.out_width, layer.in_width
    return LinearOperator(shape, matvec=times, rmatvec=transposed_times, dtype=np.float64)


def extremes_of(matrix: Any) -> Extremes:
    """Return the extreme singular values of a sparse matrix, by Lanczos iterations on products with vectors.

    The smallest of a square matrix is one over the largest of its inverse, by a sparse factorisation. For a rectangular
    matrix, whose spectrum stays away from 0, it comes from the same iterations at the other end of the spectrum. Where
    a row of the shorter side is empty, it is exactly 0.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh, splu

    matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T.tocsr()
    start = np.random.default_rng(0).standard_normal(matrix.shape[1])
    largest = largest_of(matrix)
    rows, columns = matrix.shape
    if columns > FACTORED_SIDE:
        empty = int((np.diff(matrix.tocsc().indptr) == 0).sum())
        return Extremes(largest, 0.0 if empty else None)
    if sp.csgraph.structural_rank(sp.csr_matrix(matrix)) < columns:
        return Extremes(largest, 0.0)
    try:
        if rows == columns:
            factors = splu(sp.csc_matrix(matrix))

            def inverse_gram(x: Floats) -> Floats:
                solved: Floats = factors.solve(factors.solve(x), trans="T")
                return solved

            operator = LinearOperator((columns, columns), matvec=inverse_gram, dtype=np.float64)
            top = eigsh(operator, k=1, which="LA", return_eigenvectors=False, v0=start, tol=1e-8)
            return Extremes(largest, float(1 / math.sqrt(top[0])))
        gram = LinearOperator((columns, columns), matvec=lambda x: matrix.T @ (matrix @ x), dtype=np.float64)
        low = eigsh(gram, k=1, which="SA", return_eigenvectors=False, v0=start, tol=1e-8, ncv=80, maxiter=4000)
        return Extremes(largest, math.sqrt(max(0.0, float(low[0]))))
    except RuntimeError as error:  # an exactly singular factor
        if isinstance(error, ArpackNoConvergence):
            return Extremes(largest, None)
        return Extremes(largest, 0.0)


def largest(layer: SparseMap, tolerance: float = 1e-5) -> float | None:
    """Return the largest singular value of a layer's effective matrix, None where the iterations do not converge.

    It is exact where that is cheap; otherwise it costs some dozens of products with a vector.
    """
    if isinstance(layer, PermutedKronecker) or min(layer.in_width, layer.out_width) <= SMALL_SIDE:
        return extremes(layer).largest
    from scipy.sparse.linalg import ArpackNoConvergence  # slow to import

    sparse = isinstance(layer, SparseWeights)
    matrix = to_sparse(layer) if sparse else layer.to_dense().detach().double().cpu().numpy()
    try:
        return largest_of(matrix, tolerance)
    except ArpackNoConvergence:
        return None


def largest_of(matrix: Any, tolerance: float = 1e-10) -> float:
    """Return the largest singular value of a matrix, by Lanczos iterations; 0 where all entries are 0."""
    if not np.any(matrix.data if sp.issparse(matrix) else matrix):
        return 0.0
    return _by_lanczos(matrix, tolerance)


def _by_lanczos(matrix: Any, tolerance: float) -> float:
    from scipy.sparse.linalg import svds

    start = np.random.default_rng(0).standard_normal(min(matrix.shape))
    return float(svds(matrix, k=1, return_singular_vectors=False, v0=start, tol=tolerance)[0])


def bulk_edge(rows: float, columns: float) -> float:
    """The expected largest singular value of a large dense matrix with independent entries of variance 1/columns.

    It is 1 + √γ with γ = rows/columns, the edge of the Marchenko-Pastur law.
    """
    return 1 + math.sqrt(rows / columns)


def sparse_edge(rows: float, columns: float, density: float, kurtosis: float = 3.0) -> float:
    """The expected largest singular value of a large sparse matrix, to first order in 1/(p·columns).

    Entries are nonzero with probability p = ``density`` and then have variance 1/(p·columns). The square of the value
    is L₊ = c² (1 + ξ/√γ) with c = 1 + √γ, γ = rows/columns and ξ = (kurtosis - 3p) / (p·columns), the entries' fourth
    cumulant; for normal weights L₊ = c² + 3c²(1 - p)/(√γ q²) with q² = p·columns (Hwang, Lee & Schnelli 2019, theorem
    2.9, whose variance is 1/rows; Hayase & Karakida 2024, section 4.3, print √γ as a factor, which agrees only at
    γ = 1). This is the edge of the bulk: below a fan-in of about 32, a drawn matrix can have a row so heavy that the
    largest singular value lies above it.
    """
    gamma = rows / columns
    excess = (kurtosis - 3 * density) / (density * columns)
    return bulk_edge(rows, columns) * math.sqrt(1 + excess / math.sqrt(gamma))


def expected_largest(layer: SparseMap) -> float | None:
    """The largest singular value that theory expects at initialisation, or None for a layer that it says nothing of."""
    kurtosis = 3.0 if layer.distribution == "normal" else 1.8
    spread = 1.0 if layer.distribution == "normal" else 1 / math.sqrt(3)
    if isinstance(layer, PermutedKronecker):
        return bulk_edge(layer.out_size, layer.in_size)
    rows, columns, density = layer.out_width, layer.in_width, layer.connections / (layer.out_width * layer.in_width)
    if density <= 0 or isinstance(layer, BesideDiagonal):  # whose diagonal is no part of a random matrix
        return None
    if isinstance(layer, SparseWeights):  # in units of 1/sqrt(mean fan-in), which not every rescaling gives
        acting = layer.weight_std / (math.sqrt(density) if layer.rescale == "forward" else 1)
        spread *= acting * math.sqrt(density * columns)
    return spread * sparse_edge(rows, columns, density, kurtosis)
