"""What the effective matrix of a layer is, without writing it out: its sparse form and its singular values.

A permuted-Kronecker map J2 (I x W) J1 has the singular values of W, each as often as there are blocks, since
permutations are orthogonal; untied, those of all blocks together. A sparse map is a sparse operator: Lanczos
iterations find the ends of its spectrum from products with vectors, where it is too large for a dense decomposition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from mixersweep.layers.base import SparseMap
from mixersweep.layers.kronecker import PermutedKronecker
from mixersweep.layers.sparse import SparseWeights

Floats = NDArray[np.float64]

DENSE_SIDE = 768
"""Up to this smaller side a sparse map is decomposed as a dense matrix: under a second, and exact."""

SMALL_SIDE = 128
"""Up to this smaller side a dense decomposition costs less than Lanczos iterations."""

FACTORED_SIDE = 6144
"""Up to this side the smallest singular value of a square sparse map is sought, by a factorisation that fills in."""


@dataclass(frozen=True)
class Ends:
    """The largest and the smallest of the min(rows, columns) singular values; ``smallest`` is None where the matrix is
    too large for it to be found, ``condition`` is None too where the smallest is 0.
    """

    largest: float
    smallest: float | None

    @property
    def condition(self) -> float | None:
        """Largest over smallest."""
        if self.smallest is None or self.smallest <= self.largest * 1e-13:
            return None
        return self.largest / self.smallest


def to_sparse(layer: SparseMap) -> sp.csr_array:
    """The effective matrix (out_width, in_width), float64, with an entry for each connection, zeros included."""
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
    columns = np.tile(np.arange(dense.shape[1]), dense.shape[0])
    return sp.csr_array((dense.ravel(), columns, np.arange(0, dense.size + 1, dense.shape[1])), dense.shape)


def singular_values(layer: SparseMap) -> Floats:
    """All min(out_width, in_width) singular values, descending; from the small factors where there are such.

    A sparse map costs a dense decomposition here: ``ends`` is for wide ones.
    """
    if isinstance(layer, PermutedKronecker):
        of_blocks = torch.linalg.svdvals(layer.weight.detach().double().cpu()).numpy()
        every = np.tile(of_blocks, layer.blocks) if layer.tied else of_blocks.ravel()
        return np.sort(every)[::-1]
    values: Floats = torch.linalg.svdvals(layer.to_dense().detach().double().cpu()).numpy()
    return values


def ends(layer: SparseMap) -> Ends:
    """Both ends of the spectrum of the effective matrix."""
    if isinstance(layer, SparseWeights) and min(layer.in_width, layer.out_width) > DENSE_SIDE:
        return ends_of(to_sparse(layer))
    if isinstance(layer, PermutedKronecker):
        values = torch.linalg.svdvals(layer.weight.detach().double().cpu())
        return Ends(float(values.max()), float(values.min()))
    values = singular_values(layer)
    return Ends(float(values[0]), float(values[-1]))


def ends_of_product(left: PermutedKronecker, right: PermutedKronecker) -> Ends:
    """Of the product left · right of two factors, such as a Monarch matrix J_cᵀ L J_c R.

    Where both are tied and make a Kronecker product, its singular values are all products of theirs; untied ones are
    multiplied as sparse matrices.
    """
    if left.tied and right.tied and right.mixes_rows and left.in_size == right.blocks:
        one, other = (torch.linalg.svdvals(factor.weight.detach().double().cpu()) for factor in (left, right))
        return Ends(float(one.max() * other.max()), float(one.min() * other.min()))
    product = (to_sparse(left) @ to_sparse(right)).tocsr()
    if min(product.shape) <= DENSE_SIDE:
        values = np.linalg.svd(product.toarray(), compute_uv=False)
        return Ends(float(values[0]), float(values[-1]))
    return ends_of(product)


def ends_of(matrix: Any) -> Ends:
    """Of a sparse matrix, by Lanczos iterations; neither side of it is ever squared in memory for the largest.

    The smallest of a square one is the inverse's largest, from a sparse factorisation; of a rectangular one, whose
    spectrum keeps off 0, it comes from the same iterations at the other end. An empty row (of the shorter side) makes
    it exactly 0.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh, splu

    matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T.tocsr()
    start = np.random.default_rng(0).standard_normal(matrix.shape[1])
    largest = largest_of(matrix)
    rows, columns = matrix.shape
    if columns > FACTORED_SIDE:
        empty = int((np.diff(matrix.tocsc().indptr) == 0).sum())
        return Ends(largest, 0.0 if empty else None)
    if sp.csgraph.structural_rank(sp.csr_matrix(matrix)) < columns:
        return Ends(largest, 0.0)
    try:
        if rows == columns:
            factors = splu(sp.csc_matrix(matrix))

            def inverse_gram(x: Floats) -> Floats:
                solved: Floats = factors.solve(factors.solve(x), trans="T")
                return solved

            operator = LinearOperator((columns, columns), matvec=inverse_gram, dtype=np.float64)
            top = eigsh(operator, k=1, which="LA", return_eigenvectors=False, v0=start, tol=1e-8)
            return Ends(largest, float(1 / math.sqrt(top[0])))
        gram = LinearOperator((columns, columns), matvec=lambda x: matrix.T @ (matrix @ x), dtype=np.float64)
        low = eigsh(gram, k=1, which="SA", return_eigenvectors=False, v0=start, tol=1e-8, ncv=80, maxiter=4000)
        return Ends(largest, math.sqrt(max(0.0, float(low[0]))))
    except RuntimeError as error:  # an exactly singular factor
        if isinstance(error, ArpackNoConvergence):
            return Ends(largest, None)
        return Ends(largest, 0.0)


def largest(layer: SparseMap, tolerance: float = 1e-5) -> float | None:
    """The largest singular value alone: exact where that is cheap, else at the cost of some dozens of products with a
    vector, whatever the layer's size; None where the iterations do not converge.
    """
    if isinstance(layer, PermutedKronecker) or min(layer.in_width, layer.out_width) <= SMALL_SIDE:
        return ends(layer).largest
    from scipy.sparse.linalg import ArpackNoConvergence  # some time to import

    sparse = isinstance(layer, SparseWeights)
    matrix = to_sparse(layer) if sparse else layer.to_dense().detach().double().cpu().numpy()
    try:
        return largest_of(matrix, tolerance)
    except ArpackNoConvergence:
        return None


def largest_of(matrix: Any, tolerance: float = 1e-10) -> float:
    """The largest singular value of a matrix, by Lanczos iterations; 0 of one without entries."""
    from scipy.sparse.linalg import svds

    if not np.any(matrix.data if sp.issparse(matrix) else matrix):
        return 0.0
    start = np.random.default_rng(0).standard_normal(min(matrix.shape))
    return float(svds(matrix, k=1, return_singular_vectors=False, v0=start, tol=tolerance)[0])


def bulk_edge(rows: float, columns: float) -> float:
    """Largest singular value of a large dense matrix with independent entries of variance 1/columns: 1 + sqrt(γ)."""
    return 1 + math.sqrt(rows / columns)


def sparse_edge(rows: float, columns: float, density: float, kurtosis: float = 3.0) -> float:
    """The same of a sparse one: entries that are there with probability p have variance 1/(p·columns).

    The square is L₊ = c² (1 + ξ/√γ) with c = 1 + √γ, γ = rows/columns and ξ = (kurtosis - 3p) / (p·columns), the
    entries' fourth cumulant: for normal weights c² + 3c²(1 - p)/(√γ q²) with q² = p·columns. To first order in 1/q²
    (Hwang, Lee & Schnelli 2019, theorem 2.9, whose variance is 1/rows; section 4.3 of Hayase & Karakida prints √γ as a
    factor, which is the same at γ = 1 alone). It is the edge of the bulk: below a fan-in of about 32 single
    draws have rows so heavy that their norm lies above it (``heaviest_row``).
    """
    gamma = rows / columns
    excess = (kurtosis - 3 * density) / (density * columns)
    return bulk_edge(rows, columns) * math.sqrt(1 + excess / math.sqrt(gamma))


def expected_largest(layer: SparseMap) -> float | None:
    """The largest singular value that theory expects of fresh weights; None for what is no random matrix."""
    kurtosis = 3.0 if layer.distribution == "normal" else 1.8
    spread = 1.0 if layer.distribution == "normal" else 1 / math.sqrt(3)
    if isinstance(layer, PermutedKronecker):
        return bulk_edge(layer.out_size, layer.in_size)
    rows, columns, density = layer.out_width, layer.in_width, layer.connections / (layer.out_width * layer.in_width)
    if density <= 0:
        return None
    if isinstance(layer, SparseWeights):  # in units of 1/sqrt(mean fan-in), which not every rescaling gives
        acting = layer.weight_std / (math.sqrt(density) if layer.rescale == "forward" else 1)
        spread *= acting * math.sqrt(density * columns)
    return spread * sparse_edge(rows, columns, density, kurtosis)
