"""Denoising score matching, weighted over noise levels, and its hybrid with classification.

    L = ∫ w(λ) E ‖ε − ε̂(αx + σε, λ, c)‖² / D dλ,        ∫ w dλ = 1 over [λmin, λmax],

with w in proportion to

    "elbo":     1, so that L is a bound of −log p(x|c) up to scale and constants;
    "simple":   −dt/dλ, the SDE's own time drawn uniformly (Ho et al., arXiv:2006.11239);
    "min_snr":  the same times min(1, γ e^{−λ}) (Hang et al., arXiv:2303.09556);
    "sigmoid":  sigmoid(b − λ) (Kingma & Gao, arXiv:2303.00848).

How λ is sampled never changes L: every sample is divided by its density. That is w itself, drawn
from independently ("uniform": in w's own measure) or "stratified" over the batch; or, with
"importance", a density that follows √E loss² as it is seen.

The hybrid objective adds η · cross-entropy of softmax_c(−½ (λmax − λmin) ‖ε − ε̂_c‖² / T(λ)), the
class posterior that a single draw of noise, shared by the classes, gives at a temperature T(λ):
half the root mean square of the two classes' difference there, as seen so far. Without it a single
draw is so overconfident that a few images make the whole cross-entropy. A share of each label is
spread over both classes: images that are known by heart would be told apart ever more surely. c is
an image's own class or another, drawn at random, so that a step costs two passes however many
classes there are. η grows from zero over the first steps: a network that cannot denoise yet follows
the cross-entropy's noise alone, and at high learning rates may not learn to denoise any more. Later
it falls to zero with the budget: the cross-entropy shows early what tells the classes apart, and
soon after learns the training images by heart, which the denoising does far more slowly.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot, softplus

from sgc_experiments.batches import chunks, to_model_range
from sgc_experiments.evaluation_plan import mean_pairwise_auc
from sgc_experiments.likelihood import make_draws, squared_errors
from sgc_experiments.noise_levels import SAMPLINGS, LogSNRDensity, stratified_uniforms
from sgc_experiments.score_network import ScoreNetwork, alpha_sigma
from sgc_experiments.sde import SDE
from sgc_experiments.training_settings import Moment

WEIGHTINGS = ("elbo", "simple", "min_snr", "sigmoid")
_BINS = 32  # of the importance-sampling density
_WEIGHT_BINS = 128  # of the density that follows the weight
_MEMORY = 0.95  # of the running mean of the squared loss per bin, per batch that falls into it
_FLOOR = 0.1  # share of the importance-sampling density that stays uniform
_VALIDATION_DRAWS = 8
_PHASED_IN = 300  # steps over which η grows


class DenoisingScoreMatching(nn.Module):
    """Training objective of a `ScoreNetwork`; holds no parameters, only running statistics.

    Args:
        sde: Decides the base density of "simple" and "min_snr".
        log_snr_min: Lower end of the noise levels trained on.
        log_snr_max: Upper end.
        weighting: One of `WEIGHTINGS`.
        log_snr_sampling: One of `noise_levels.SAMPLINGS`.
        min_snr_gamma: γ of "min_snr".
        sigmoid_bias: b of "sigmoid".
        hybrid_weight: η; 0 leaves the cross-entropy out.
        label_smoothing: Share of each label that the cross-entropy spreads over both classes.
        label_dropout: Share of labels replaced by the null class.

    Raises:
        ValueError: A parameter is out of range; the message names it.
    """

    monitor = "validation_loss"

    def __init__(
        self,
        sde: SDE,
        *,
        log_snr_min: float,
        log_snr_max: float,
        weighting: str = "elbo",
        log_snr_sampling: str = "stratified",
        min_snr_gamma: float = 5.0,
        sigmoid_bias: float = 2.0,
        hybrid_weight: float = 0.0,
        label_smoothing: float = 0.0,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.sde = sde
        self.low, self.high = float(log_snr_min), float(log_snr_max)
        self.weighting, self.log_snr_sampling = weighting, log_snr_sampling
        self.min_snr_gamma, self.sigmoid_bias = min_snr_gamma, sigmoid_bias
        self.hybrid_weight, self.label_smoothing = hybrid_weight, label_smoothing
        self.label_dropout = label_dropout
        self._check()
        grid = torch.linspace(self.low, self.high, 2001, dtype=torch.float64)
        self._normaliser = float(torch.trapezoid(self._unnormalised_weight(grid), grid))
        edges = torch.linspace(self.low, self.high, _WEIGHT_BINS + 1, dtype=torch.float64)
        masses = self.weight((edges[1:] + edges[:-1]) / 2)
        # A bin without weight (min_snr, far out) keeps a chance, or L could not be estimated.
        self._weight_as_density = LogSNRDensity(edges, masses.clamp(min=1e-6))
        self.squared_loss: Tensor
        self.seen: Tensor
        self.squared_evidence: Tensor
        self.evidence_seen: Tensor
        # Decaying sums of squared losses and of their number, per bin.
        self.register_buffer("squared_loss", torch.zeros(_BINS, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(_BINS, dtype=torch.float64))
        # The same of squared class differences, in nats.
        self.register_buffer("squared_evidence", torch.zeros(_BINS, dtype=torch.float64))
        self.register_buffer("evidence_seen", torch.zeros(_BINS, dtype=torch.float64))

    def _check(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(
                f"log_snr_min must be below log_snr_max, not {self.low} and {self.high}"
            )
        if self.weighting not in WEIGHTINGS:
            raise ValueError(
                f"weighting must be one of {', '.join(WEIGHTINGS)}, not {self.weighting!r}"
            )
        if self.log_snr_sampling not in SAMPLINGS:
            raise ValueError(
                f"log_snr_sampling must be one of {', '.join(SAMPLINGS)}, "
                f"not {self.log_snr_sampling!r}"
            )
        if not self.min_snr_gamma > 0:
            raise ValueError(f"min_snr_gamma must be positive, not {self.min_snr_gamma}")
        if not self.hybrid_weight >= 0:
            raise ValueError(f"hybrid_weight must not be negative, not {self.hybrid_weight}")
        for name in ("label_smoothing", "label_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")

    def _unnormalised_weight(self, log_snr: Tensor) -> Tensor:
        if self.weighting == "elbo":
            return torch.ones_like(log_snr)
        if self.weighting == "sigmoid":
            return torch.sigmoid(self.sigmoid_bias - log_snr)
        simple = -1 / self.sde.log_snr_rate(self.sde.time(log_snr))
        if self.weighting == "simple":
            return simple
        return simple * (self.min_snr_gamma * torch.exp(-log_snr)).clamp(max=1)

    def weight(self, log_snr: Tensor) -> Tensor:
        """w(λ), whose integral over the range is 1; float64, same shape."""
        return self._unnormalised_weight(log_snr.double()) / self._normaliser

    def sampling_density(self) -> LogSNRDensity:
        """q(λ) of the next batch."""
        if self.log_snr_sampling != "importance":
            return self._weight_as_density
        masses = torch.full((_BINS,), 1 / _BINS, dtype=torch.float64)
        if self.seen.all():
            ideal = (self.squared_loss / self.seen).sqrt().cpu()
            masses = (1 - _FLOOR) * ideal / ideal.sum() + _FLOOR * masses
        return LogSNRDensity(torch.linspace(self.low, self.high, _BINS + 1), masses)

    def forget(self) -> None:
        """Start the running statistics anew, as a new training does."""
        for statistic in self.buffers():
            statistic.zero_()

    def loss(
        self,
        network: ScoreNetwork,
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        moment: Moment,
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch, and metrics for the log.

        Args:
            network: In training mode.
            images: (B, 1, S, S), range [−1, 1].
            labels: int64 (B,); −1 means without a label.
            generator: Source of all noise, on the device of the images.
            moment: Of the training, which decides what has become of η.
        """
        x = network.standardise(images)
        density = self.sampling_density()
        strata = 1 if self.log_snr_sampling == "uniform" else len(x)
        log_snr = density.quantile(stratified_uniforms(len(x), strata, generator))
        importance = (self.weight(log_snr) / density.density(log_snr)).to(x)
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        null = labels < 0
        if self.label_dropout:
            draw = torch.rand(len(x), generator=generator, device=x.device)
            null = null | (draw < self.label_dropout)
        target = torch.where(null, network.classes, labels)
        error, pair_errors = self._errors(network, x, noise, log_snr, target, generator)
        weighted = importance * error
        self._remember(density, log_snr, weighted.detach())
        total = weighted.mean()
        metrics = {"denoising_loss": float(total.detach())}
        if len(pair_errors):
            entropy = self._cross_entropy(x, log_snr[~null.cpu()], pair_errors)
            total = total + _share_of_hybrid_weight(moment) * self.hybrid_weight * entropy
            metrics["class_loss"] = float(entropy.detach())
        return total, metrics

    def _errors(
        self,
        network: ScoreNetwork,
        x: Tensor,
        noise: Tensor,
        log_snr: Tensor,
        target: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """‖ε − ε̂‖² / D under each image's target, (B,).

        And, if the objective is hybrid, under the own class and another of each image that has a
        label, (B', 2), else empty.
        """
        log_snr = log_snr.to(x.device)
        alpha, sigma = alpha_sigma(log_snr, x)
        z = alpha * x + sigma * noise
        known = target < network.classes
        if not self.hybrid_weight or network.classes < 2 or not known.any():
            return _mean_square(noise - network(z, log_snr, target).float()), x.new_empty(0)
        pair = _with_another(target[known], network.classes, generator)
        eps = network.several_classes(z[known], log_snr[known], pair).float()
        pair_errors = _mean_square(noise[known].unsqueeze(1) - eps)
        error = x.new_empty(len(x))
        error[known] = pair_errors[:, 0]
        if not known.all():
            eps = network(z[~known], log_snr[~known], target[~known]).float()
            error[~known] = _mean_square(noise[~known] - eps)
        return error, pair_errors

    def _cross_entropy(self, x: Tensor, log_snr: Tensor, pair_errors: Tensor) -> Tensor:
        """Of the errors (B', 2) under an image's own class and another, at λ (B',)."""
        logits = -self._evidence_scale(x[0].numel()) * pair_errors
        self._remember_evidence(log_snr, logits.detach())
        temperature = self._temperature(log_snr).to(x)
        own = torch.zeros(len(logits), dtype=torch.int64, device=x.device)
        return cross_entropy(
            logits / temperature[:, None], own, label_smoothing=self.label_smoothing
        )

    @torch.no_grad()
    def _remember(self, density: LogSNRDensity, log_snr: Tensor, weighted: Tensor) -> None:
        """Update E (w · error)² per bin of λ; `weighted` is w · error / q."""
        if self.log_snr_sampling != "importance":
            return
        index = density.bin(log_snr)
        squares = (weighted.cpu().double() * density.density(log_snr)).square()
        for b in index.unique():
            self.squared_loss[b] = _MEMORY * self.squared_loss[b] + squares[index == b].mean()
            self.seen[b] = _MEMORY * self.seen[b] + 1

    @torch.no_grad()
    def _remember_evidence(self, log_snr: Tensor, logits: Tensor) -> None:
        """Update the mean square per bin of λ of the logits' (B, C) distance from their mean."""
        squares = logits.double().var(1, correction=0).to(self.squared_evidence)
        index = self._bin(log_snr)
        for b in index.unique():
            new = squares[index == b].mean()
            self.squared_evidence[b] = _MEMORY * self.squared_evidence[b] + new
            self.evidence_seen[b] = _MEMORY * self.evidence_seen[b] + 1

    def _temperature(self, log_snr: Tensor) -> Tensor:
        """T(λ) ≥ 1, the same shape; 1 where nothing has been seen."""
        mean = (self.squared_evidence / self.evidence_seen.clamp(min=1e-9)).cpu()
        return mean.sqrt().clamp(min=1)[self._bin(log_snr)]

    def _bin(self, log_snr: Tensor) -> Tensor:
        return LogSNRDensity(torch.linspace(self.low, self.high, _BINS + 1), torch.ones(_BINS)).bin(
            log_snr
        )

    def validate(
        self, network: ScoreNetwork, images: np.ndarray, labels: np.ndarray
    ) -> dict[str, float]:
        """Metrics on held-out images at fixed noise, the same at every call.

        Args:
            network: In evaluation mode.
            images: uint16 (N, S, S).
            labels: int64 (N,), none of them −1.
        """
        device = network.pixel_mean.device
        draws = make_draws((1, *images.shape[1:]), self._weight_as_density, _VALIDATION_DRAWS)
        parts = (to_model_range(images[chunk]).to(device) for chunk in chunks(len(images)))
        standardised = map(network.standardise, parts)
        errors = torch.cat([squared_errors(network, x, draws) for x in standardised])
        target = torch.as_tensor(labels)
        per_pixel = errors / images[0].size
        own = per_pixel[torch.arange(len(images)), :, target]
        weight = self.weight(draws.log_snr) * draws.weight
        evidence = -(errors * weight[:, None]).sum(1)
        metrics = {
            "validation_loss": float((own * weight).sum(1).mean()),
            "validation_accuracy": float((evidence.argmax(1) == target).double().mean()),
            "validation_auc": mean_pairwise_auc(evidence.numpy(), labels),
        }
        if self.hybrid_weight and network.classes > 1:
            scale = self._evidence_scale(images[0].size)
            entropy = _pairwise_cross_entropy(scale * per_pixel, target)
            metrics["validation_class_loss"] = entropy
            metrics["validation_loss"] += self.hybrid_weight * entropy
        return metrics

    def _evidence_scale(self, dimensions: int) -> float:
        """½ (λmax − λmin) D: what turns a mean squared error into nats."""
        return 0.5 * (self.high - self.low) * dimensions


def _share_of_hybrid_weight(moment: Moment) -> float:
    """Up over the first steps, and down to zero with the budget along half a cosine."""
    return min(1.0, (moment.step + 1) / _PHASED_IN) * 0.5 * (1 + math.cos(math.pi * moment.spent))


def _mean_square(x: Tensor) -> Tensor:
    """Over the last three dimensions, those of an image."""
    return x.square().flatten(-3).mean(-1)


def _pairwise_cross_entropy(errors: Tensor, labels: Tensor) -> float:
    """The cross-entropy of training on held-out images: draw by draw, own class against another.

    The temperature of a draw is that of these errors themselves: by the one that training has come
    to, the same network would be judged otherwise at every call.

    Args:
        errors: In nats, (N, K, C).
        labels: int64 (N,).
    """
    own = errors[torch.arange(len(errors)), :, labels]
    others = ~one_hot(labels, errors.shape[2]).bool()
    margin = (errors - own[:, :, None])[others[:, None].expand_as(errors)]
    margin = margin.view(len(errors), errors.shape[1], -1)
    temperature = (margin / 2).square().mean((0, 2), keepdim=True).sqrt().clamp(min=1)
    return float(softplus(-margin / temperature).mean())


def _with_another(labels: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """Labels (B,) beside one of the other classes each, int64 (B, 2)."""
    steps = torch.randint(1, classes, labels.shape, generator=generator, device=labels.device)
    return torch.stack([labels, (labels + steps) % classes], dim=1)
