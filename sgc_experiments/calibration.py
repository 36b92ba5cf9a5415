"""From log-odds to probabilities: a temperature and an offset per class.

    p(c|x) = softmax_c(log_odds_c / T + b_c + log π_c),         b_0 = 0.

A likelihood that is an integral over thousands of pixels is overconfident by a large factor, which
T takes away without changing the order of the images; b takes away what the estimates favour one
class by, as in Platt scaling. Both are fitted by maximum a posteriori on held-out images, with
log T ~ N(0, 3²) and b ~ N(0, 2²): with few images, or log-odds that tell nothing, the posterior
falls back on the prevalence rather than on noise.

References: Platt 1999; Guo et al., arXiv:1706.04599.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

_LOG_TEMPERATURE_SCALE = 3.0
_OFFSET_SCALE = 2.0


@dataclass(frozen=True)
class Calibration:
    """Temperature T > 0 and offsets (C,), in nats; the first offset is 0."""

    temperature: float
    offset: tuple[float, ...]

    @classmethod
    def identity(cls, classes: int) -> "Calibration":
        """Takes log-odds at their word."""
        return cls(1.0, (0.0,) * classes)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Calibration":
        """Of what `dataclasses.asdict` gave, perhaps by way of JSON."""
        return cls(float(stored["temperature"]), tuple(stored["offset"]))

    def logits(self, log_odds: np.ndarray, prior: Sequence[float] | np.ndarray) -> np.ndarray:
        """Log p(c|x) up to a constant of each image, (N, C); arguments as `posterior`.

        Their differences are the calibrated log-odds, also where a probability rounds to 0.
        """
        prior = np.asarray(prior, dtype=np.float64)
        if prior.shape != (len(self.offset),) or not np.all(prior > 0):
            raise ValueError(f"prior must hold {len(self.offset)} positive numbers")
        logits: np.ndarray = (
            np.asarray(log_odds) / self.temperature + self.offset + np.log(prior / prior.sum())
        )
        return logits

    def posterior(self, log_odds: np.ndarray, prior: Sequence[float] | np.ndarray) -> np.ndarray:
        """Probabilities (N, C) from log-odds (N, C) and class probabilities π (C,).

        Raises:
            ValueError: `prior` is not a positive weight for each class.
        """
        logits = self.logits(log_odds, prior)
        logits -= logits.max(1, keepdims=True)
        odds = np.exp(logits)
        posterior: np.ndarray = odds / odds.sum(1, keepdims=True)
        return posterior


def class_prior(labels: np.ndarray, classes: int) -> np.ndarray:
    """Share of each class among the labelled, (C,), counting half an image more of each."""
    counts = np.bincount(labels[labels >= 0], minlength=classes) + 0.5
    shares: np.ndarray = counts / counts.sum()
    return shares


def fit_calibration(log_odds: np.ndarray, labels: np.ndarray) -> Calibration:
    """Fit temperature and offsets on held-out images.

    Args:
        log_odds: (N, C), column 0 is the reference and holds 0.
        labels: int64 (N,). Their shares serve as π, so that b holds only the estimator's bias and
            any prevalence may be put in later.

    Returns:
        The identity if N is 0.
    """
    classes = log_odds.shape[1]
    if len(labels) == 0:
        return Calibration.identity(classes)
    prior = torch.as_tensor(np.log(class_prior(labels, classes)))
    target = torch.as_tensor(labels)
    # Scaled to unit spread, so that the search starts near its end.
    values = torch.as_tensor(log_odds, dtype=torch.float64)
    scale = float(values[:, 1:].std(correction=0)) if values[:, 1:].numel() else 0.0
    scale = scale or 1.0
    parameters = torch.zeros(classes, dtype=torch.float64, requires_grad=True)

    def negative_log_posterior() -> torch.Tensor:
        log_temperature = parameters[0] + np.log(scale)
        offset = torch.cat([torch.zeros(1, dtype=torch.float64), parameters[1:]])
        logits = values * torch.exp(-log_temperature) + offset + prior
        penalty = (log_temperature / _LOG_TEMPERATURE_SCALE).square()
        penalty = penalty + (parameters[1:] / _OFFSET_SCALE).square().sum()
        loss: torch.Tensor = cross_entropy(logits, target, reduction="sum") + 0.5 * penalty
        return loss

    optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = negative_log_posterior()
        value.backward()
        return value

    optimizer.step(closure)
    fitted = parameters.detach().tolist()
    return Calibration(float(np.exp(fitted[0]) * scale), (0.0, *fitted[1:]))
