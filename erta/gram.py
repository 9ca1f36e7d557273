"""Matrices of scalar products: checks and distances."""

import numpy as np

# Of the trace: how far a Gram matrix may be from symmetric and positive semidefinite.
TOLERANCE = 1e-9
# A trace below this is 0, or has too few digits left to decide.
LEAST_TRACE = np.finfo(np.float64).tiny / TOLERANCE


def distances(gram: np.ndarray) -> np.ndarray:
    """(M, M) float64 |F_i - F_j| from the scalar products <F_i, F_j> (M, M)."""
    squares = np.diag(gram)
    apart: np.ndarray = squares[:, None] + squares[None, :]
    apart -= gram
    apart -= gram
    np.sqrt(np.maximum(apart, 0, out=apart), out=apart)
    np.fill_diagonal(apart, 0)
    return apart


def is_semidefinite(gram: np.ndarray) -> bool:
    """Whether a matrix (M, M), exactly symmetric, is positive semidefinite up to rounding."""
    diagonal = np.diag(gram)
    scale = diagonal.sum()
    if diagonal.min() < 0 or max(gram.max(), -gram.min()) > scale:
        return False
    if scale < LEAST_TRACE:
        return True
    unit = gram / scale
    unit.flat[:: len(unit) + 1] += TOLERANCE
    try:
        np.linalg.cholesky(unit)
    except np.linalg.LinAlgError:
        return False
    return True


def mirrored(matrix: np.ndarray) -> np.ndarray:
    """The upper half of (M, M), and its mirror image below. A sum of the two would spread NaN and infinity."""
    return np.where(np.tri(len(matrix), k=-1, dtype=bool), matrix.T, matrix)
