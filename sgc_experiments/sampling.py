"""Images drawn from a class, for looking at what the model has learnt.

From λ_k to λ_{k+1} > λ_k, both samplers first denoise, x̂ = (z − σ_k ε̂) / α_k, and then set

    probability flow:  z = α_{k+1} x̂ + σ_{k+1} ε̂                 (DDIM, deterministic)
    ancestral:         z ~ q(z_{k+1} | z_k, x̂), the forward process's posterior, Gaussian.

With guidance strength s, ε̂ = ε̂_null + s (ε̂_c − ε̂_null); it needs a trained null class.

References: Song et al., DDIM, arXiv:2010.02502; Ho et al., arXiv:2006.11239;
Ho & Salimans, classifier-free guidance, arXiv:2207.12598.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from sgc_experiments.score_network import ScoreNetwork, alpha_sigma

SAMPLERS = ("probability_flow", "ancestral")
_LARGEST = 6.0  # standardised pixels beyond this are a denoiser's error at high noise


@torch.no_grad()
def sample(
    network: ScoreNetwork,
    labels: Tensor,
    image_size: int,
    *,
    log_snr_min: float,
    log_snr_max: float,
    sampler: str = "probability_flow",
    steps: int = 64,
    guidance: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Draw one image for each label.

    Args:
        network: In evaluation mode.
        labels: int64 (N,); `network.classes` is the null class.
        image_size: Side S.
        log_snr_min: Where the path starts; the lowest level that the network was trained on.
        log_snr_max: Where it ends.
        sampler: One of `SAMPLERS`.
        steps: Denoising steps, evenly spaced in λ.
        guidance: s; 1 is the class's own density.
        seed: Of the noise.

    Returns:
        Standardised images (N, 1, S, S).

    Raises:
        ValueError: A parameter is out of range; the message names it.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, not {sampler!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    generator = torch.Generator().manual_seed(seed)
    device = labels.device

    def noise() -> Tensor:
        shape = (len(labels), 1, image_size, image_size)
        return torch.randn(shape, generator=generator).to(device)

    z = noise()
    x = z
    levels = torch.linspace(log_snr_min, log_snr_max, steps + 1, dtype=torch.float64)
    for now, later in pairwise(levels):
        log_snr = now.expand(len(z)).to(device)
        eps = _guided(network, z, log_snr, labels, guidance)
        alpha, sigma = alpha_sigma(log_snr, z)
        x = ((z - sigma * eps) / alpha).clamp(-_LARGEST, _LARGEST)
        eps = (z - alpha * x) / sigma
        alpha_later, sigma_later = alpha_sigma(later.expand(len(z)).to(device), z)
        if sampler == "probability_flow":
            z = alpha_later * x + sigma_later * eps
        else:
            # The noise that z shares with a later z has e^{now − later} of its variance.
            kept = math.exp(float(now - later))
            z = (
                alpha_later * x
                + sigma_later * math.sqrt(kept) * eps
                + sigma_later * math.sqrt(1 - kept) * noise()
            )
    return x


def _guided(
    network: ScoreNetwork, z: Tensor, log_snr: Tensor, labels: Tensor, guidance: float
) -> Tensor:
    eps: Tensor = network(z, log_snr, labels)
    if guidance == 1:
        return eps
    null: Tensor = network(z, log_snr, torch.full_like(labels, network.classes))
    return null + guidance * (eps - null)
