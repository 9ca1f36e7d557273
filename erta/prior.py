"""What is assumed of any model where nothing was measured (docs/method.md, The prior): how features and errors change.

Both follow from the sigmas alone. They choose what to compute and to correct; no error is predicted from them.
"""

import numpy as np

from .simulation import ErrorResponse

# Correlation length of features in the log signal-to-noise ratio. On a small trained video model 1.5 to 3 do equally
# well: shorter is better with few steps, longer in the worst case of many.
LENGTH = 2.0

# Correlation length of the error response. Only the predicted error depends on it: on that model 0.7 and 1.4 predict
# 0.75 and 1.2 times as much.
ERROR_LENGTH = 1.0

# Close to pure noise the response to an error is taken to be at most this many times the error over sigma.
MAX_ERROR_RESPONSE = 16.0

_LEAST = 1e-3


def generic_gram(sigmas: np.ndarray) -> np.ndarray:
    """(1, M + 1, M + 1): the extended Gram matrix of features of unit size, smooth in the log signal-to-noise ratio.

    sigmas: (M,). A Matern kernel of order 5/2: twice differentiable, as the solution of a sampling ODE is, and no more.
    """
    gram = np.eye(len(sigmas) + 1)
    gram[:-1, :-1] = correlation(sigmas, LENGTH)
    return gram[None]


def correlation(sigmas: np.ndarray, length: float) -> np.ndarray:
    """(M, M) Matern 5/2 correlation of two sigmas over the log signal-to-noise ratio, in which length is given."""
    flow = flow_sigmas(sigmas)
    # At pure noise the ratio is 0 and has no logarithm; networks do not resolve what lies below a thousandth.
    snr = np.log(np.maximum(1.0 - flow, _LEAST) / np.maximum(flow, _LEAST))
    apart = np.sqrt(5.0) * np.abs(snr[:, None] - snr[None, :]) / length
    found: np.ndarray = (1.0 + apart + apart**2 / 3.0) * np.exp(-apart)
    return found


def conservative_error_response(sigmas: np.ndarray) -> ErrorResponse:
    """An error response on the large side, without a direction: deviation 1 / (sigma (1 - sigma)), no gain.

    sigmas: (M,). It is that of a denoiser that trusts x for the share 1 - sigma of it; 2 to 4 times what was measured.
    """
    flow = flow_sigmas(sigmas)
    size = np.minimum(1.0 / np.maximum(1.0 - flow, _LEAST), MAX_ERROR_RESPONSE)
    if sigmas.max(initial=0.0) > 1.0 + 1e-6:
        size = np.ones_like(size)
    return ErrorResponse(np.zeros(len(sigmas)), size / sigmas, np.eye(len(sigmas)))


def flow_sigmas(sigmas: np.ndarray) -> np.ndarray:
    """(M,) in 0 to 1: sigmas above 1, of models that are no flow models, become sigma / (1 + sigma)."""
    return sigmas if sigmas.max(initial=0.0) <= 1.0 + 1e-6 else sigmas / (1.0 + sigmas)
