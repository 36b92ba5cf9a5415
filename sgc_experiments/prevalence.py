"""How common each class is where new images come from, told from the posteriors alone.

A classifier fitted at the prevalence π⁰ is used where it is π; images of a class look alike in both
places (label shift). Its posteriors then hold p(x_i|c) up to a factor per image, as p⁰(c|x_i)/π⁰_c,
and the likelihood of the unlabelled images, Σ_i log Σ_c π_c p(x_i|c), is maximised by repeating

    p(c|x_i) ∝ π_c p⁰(c|x_i) / π⁰_c,        π_c ← mean_i p(c|x_i)

(expectation-maximisation; the objective is concave in π). One image more is counted, of π⁰: no
class is ever ruled out, and posteriors that tell nothing leave what was known. The estimate is as
good as the calibration: overconfident posteriors drive it to an end.

Reference: Saerens, Latinne & Decaestecker, Adjusting the outputs of a classifier to new a priori
probabilities, Neural Computation 14(1), 2002, https://doi.org/10.1162/089976602753284446.
"""

import numpy as np

_MOST_ROUNDS = 2000
_SETTLED = 1e-6


def estimate_prevalence(
    posterior: np.ndarray, prior: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """The prevalence π at which the images are most likely.

    Args:
        posterior: Calibrated probabilities (N, C), for the prevalence `prior`.
        prior: π⁰, (C,), all positive.
        weights: How often each image counts, (B, N), for B estimates at once (the resamples of a
            bootstrap); None: once each.

    Returns:
        (C,), or (B, C) with `weights`.
    """
    ratio = posterior / prior
    counts = np.ones((1, len(ratio))) if weights is None else weights
    known = prior / np.sum(prior)
    found = np.tile(known, (len(counts), 1))
    total = counts.sum(1, keepdims=True) + 1
    for _ in range(_MOST_ROUNDS):
        joint = found[:, None] * ratio
        responsibility = joint / joint.sum(2, keepdims=True)
        before = found
        found = (np.einsum("bn,bnc->bc", counts, responsibility) + known) / total
        if np.abs(found - before).max() < _SETTLED:
            break
    return found[0] if weights is None else found
