"""What is assumed of any model where nothing was measured (docs/method.md, The prior): how features and errors change.

All of it follows from the sigmas and the size of the latent. In flow sigmas x = (1 - sigma) data + sigma noise.
"""

import numpy as np

from .simulation import ErrorResponse

# Correlation length of features in the log signal-to-noise ratio. On small trained video models 1.5 to 3 do equally
# well with 50 steps; 1.5 is better with 20 steps and on rough models.
LENGTH = 1.5

# Correlation length of the error response. Only the predicted error depends on it: on the demo's model 0.7 and 1.4
# predict 0.75 and 1.2 times as much.
ERROR_LENGTH = 1.0

# The response to an error, in units of the error over sigma: between these whatever sigma is. Measured on small trained
# models: 9 at most, and below 0.5 only at the last steps; on a rough one 1 to 2 there.
LEAST_ERROR_RESPONSE, MOST_ERROR_RESPONSE = 0.5, 9.0

# Variance of the coarsest structure per position of the latent, in units of the noise's: chosen by half of the
# published lists in profiles/presets.json, checked by the others. From 0.01 to 0.1 both halves hardly change.
COARSEST = 0.03

# Share of a feature's variance that no other feature has, where the sampler is a multistep method: it calls the model
# at latents of which it takes part back. On two small trained models 0.003 to 0.03 do nearly alike.
KINKS = 0.01

_LEAST = 1e-3


def generic_gram(sigmas: np.ndarray, kinks: float = 0.0) -> np.ndarray:
    """(1, M + 1, M + 1): the extended Gram matrix of features of unit size, smooth in the log signal-to-noise ratio.

    sigmas: (M,). A Matern kernel of order 5/2: twice differentiable, as the solution of a sampling ODE is, and no more.
    kinks: share of each feature's variance that it has for itself.
    """
    count, scale = len(sigmas), _scale(sigmas)
    gram = np.eye(count + 1)
    smooth = (1.0 - kinks) * correlation(sigmas, LENGTH) + kinks * np.eye(count)
    gram[:-1, :-1] = smooth * np.outer(scale, scale)
    return gram[None]


def correlation(sigmas: np.ndarray, length: float) -> np.ndarray:
    """(M, M) Matern 5/2 correlation of two sigmas over the log signal-to-noise ratio, in which length is given."""
    snr = log_snr(flow_sigmas(sigmas))
    apart = np.sqrt(5.0) * np.abs(snr[:, None] - snr[None, :]) / length
    found: np.ndarray = (1.0 + apart + apart**2 / 3.0) * np.exp(-apart)
    return found


def log_snr(flow: np.ndarray) -> np.ndarray:
    """Logarithm of the signal-to-noise ratio at each flow sigma."""
    # At pure noise the ratio is 0 and has no logarithm; networks do not resolve what lies below a thousandth.
    found: np.ndarray = np.log(np.maximum(1.0 - flow, _LEAST) / np.maximum(flow, _LEAST))
    return found


def assumed_error_response(sigmas: np.ndarray) -> ErrorResponse:
    """The error response of a model of which nothing was measured: deviation 1 / (1 - sigma), without a direction.

    sigmas: (M,). On small trained video models it is 0.5 to 2 times what was measured.
    """
    flow = flow_sigmas(sigmas)
    size = np.clip(flow / np.maximum(1.0 - flow, _LEAST), LEAST_ERROR_RESPONSE, MOST_ERROR_RESPONSE)
    deviation = size / np.maximum(flow, _LEAST) * _scale(sigmas) ** 2
    return ErrorResponse(np.zeros(len(sigmas)), deviation, np.eye(len(sigmas)))


def weight(sigmas: np.ndarray, positions: int) -> np.ndarray:
    """(M,) how much a squared position error at each sigma counts in the end, for a latent of so many positions.

    The coarsest structure is taken for a Gaussian mode of variance S = COARSEST * positions. An error in it grows until
    the end by g, 1 / g^2 = (1 - sigma)^2 + sigma^2 / S, and the denoiser follows the latent there by (1 - sigma) g^2.
    The weight is the product of g^2 and that: coarse structure is decided early, and the earlier the larger the latent.
    """
    flow = flow_sigmas(sigmas)
    variance = max(COARSEST * positions, 1.0)
    growth = 1.0 / ((1.0 - flow) ** 2 + flow**2 / variance)
    weights: np.ndarray = growth**2 * (1.0 - flow) * _scale(sigmas) ** 2
    return weights


def flow_sigmas(sigmas: np.ndarray) -> np.ndarray:
    """(M,) in 0 to 1: sigmas above 1, of models that are no flow models, become sigma / (1 + sigma)."""
    return sigmas if _is_flow(sigmas) else sigmas / (1.0 + sigmas)


def _is_flow(sigmas: np.ndarray) -> bool:
    return bool(sigmas.max(initial=0.0) <= 1.0 + 1e-6)


def _scale(sigmas: np.ndarray) -> np.ndarray:
    """(M,) how much smaller a change of the derivative is than in flow sigmas: 1 - flow sigma, and 1 in a flow model.

    Models that are no flow models sample x / (1 - flow sigma), whose derivative (x - denoised) / sigma moves less.
    """
    return np.ones_like(sigmas) if _is_flow(sigmas) else 1.0 - flow_sigmas(sigmas)
