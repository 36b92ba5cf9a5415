"""Forward SDEs with Gaussian perturbation kernels: VP, sub-VP and VE.

Every SDE here is linear, dx = f(t) x dt + g(t) dw on 0 < t <= 1, so that

    p(z_t | x) = N(α_t x, σ_t² I),      λ(t) = log(α_t² / σ_t²)      (the log-SNR).

With a dot for d/dt, matching the mean and the variance of that kernel gives

    f = (log α)˙,        g² = (σ²)˙ − 2 f σ² = −σ² λ˙,

so an SDE is fully told by two functions of time, λ and log α. Time runs towards noise: λ strictly
decreases. After z is divided by √(α² + σ²), all SDEs pose one and the same denoising problem at the
same λ; see `score_network`. What the choice of an SDE decides is the path of λ through time (which
weights the "simple" loss) and the prior at t = 1.

Times and log-SNRs are float64: σ at the clean end is the difference of nearly equal numbers.

References: Song et al., Score-Based Generative Modeling through SDEs, arXiv:2011.13456;
Kingma et al., Variational Diffusion Models, arXiv:2107.00630; Nichol & Dhariwal, Improved DDPM,
arXiv:2102.09672 (cosine); Hoogeboom et al., simple diffusion, arXiv:2301.11093 (the shift).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

T_MIN = 1e-5  # where the paper's VP SDE starts; λ is infinite at t = 0


class SDE(ABC):
    """A linear forward SDE.

    Args:
        log_snr_shift: Added to λ(t) at every t. Neighbouring pixels of a larger image are more
            alike, so that the same noise hides less of it; a negative shift makes up for that.
    """

    def __init__(self, log_snr_shift: float = 0.0) -> None:
        if not math.isfinite(log_snr_shift):
            raise ValueError(f"log_snr_shift must be finite, not {log_snr_shift}")
        self.log_snr_shift = float(log_snr_shift)

    # What a subclass tells: λ without the shift and its inverse, log α, and both rates.
    @abstractmethod
    def _log_snr(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _log_snr_rate(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _time(self, log_snr: Tensor) -> Tensor: ...

    @abstractmethod
    def _log_alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _log_alpha_rate(self, t: Tensor) -> Tensor: ...

    def log_snr(self, t: Tensor) -> Tensor:
        """λ(t) for times in [T_MIN, 1]; float64, same shape as `t`."""
        return self._log_snr(t.double()) + self.log_snr_shift

    def log_snr_rate(self, t: Tensor) -> Tensor:
        """Rate dλ/dt, negative everywhere; float64, same shape as `t`."""
        return self._log_snr_rate(t.double())

    def time(self, log_snr: Tensor) -> Tensor:
        """Inverse of `log_snr`; float64, same shape."""
        return self._time(log_snr.double() - self.log_snr_shift)

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        """Rate d log α / dt, which is f(t); float64, same shape as `t`."""
        return self._log_alpha_rate(t.double())

    def log_snr_range(self) -> tuple[float, float]:
        """λ at t = 1 and at t = T_MIN."""
        ends = self.log_snr(torch.tensor([1.0, T_MIN], dtype=torch.float64))
        return float(ends[0]), float(ends[1])

    def kinks(self) -> Tensor:
        """Times in (T_MIN, 1) at which f and g jump, ascending, for solvers; float64."""
        return torch.zeros(0, dtype=torch.float64)

    def marginal_prob(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α(t) and σ(t) of p(z_t | x) = N(α x, σ² I); float64, same shape as `t`."""
        log_alpha = self._log_alpha(t.double())
        return log_alpha.exp(), (log_alpha - 0.5 * self.log_snr(t)).exp()

    def drift_and_diffusion(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """f(t) and g(t) of dx = f x dt + g dw; float64, same shape as `t`."""
        _, sigma = self.marginal_prob(t)
        return self.log_alpha_rate(t), sigma * (-self.log_snr_rate(t)).sqrt()

    def prior_std(self) -> float:
        """Standard deviation of the prior at t = 1, that of z_1 for data of unit variance.

        It is 1 for a VP SDE, nearly 1 for sub-VP and nearly σ_max for VE.
        """
        alpha, sigma = self.marginal_prob(torch.ones((), dtype=torch.float64))
        return math.hypot(float(alpha), float(sigma))

    def prior_log_prob(self, z: Tensor) -> Tensor:
        """Log-density in nats of z_1 of shape (B, ...) under N(0, prior_std² I); float64 (B,)."""
        z = z.double().flatten(1) / self.prior_std()
        normaliser = 0.5 * math.log(2 * math.pi) + math.log(self.prior_std())
        return -0.5 * z.square().sum(1) - z.shape[1] * normaliser


class VariancePreserving(SDE):
    """α² + σ² = 1, hence α² = sigmoid(λ): λ alone tells everything."""

    def _log_alpha(self, t: Tensor) -> Tensor:
        return 0.5 * logsigmoid(self.log_snr(t))

    def _log_alpha_rate(self, t: Tensor) -> Tensor:
        return 0.5 * torch.sigmoid(-self.log_snr(t)) * self.log_snr_rate(t)


class _LinearBeta:
    """B(t) = ∫₀ᵗ β(s) ds for β(t) = β_min + t (β_max − β_min), and its inverse."""

    def __init__(self, beta_min: float, beta_max: float) -> None:
        if not beta_min > 0:
            raise ValueError(f"beta_min must be positive, not {beta_min}")
        if not beta_min < beta_max < math.inf:
            raise ValueError(f"beta_max must be finite and above beta_min, not {beta_max}")
        self.minimum, self.slope = float(beta_min), float(beta_max) - float(beta_min)

    def rate(self, t: Tensor) -> Tensor:
        return self.minimum + t * self.slope

    def integral(self, t: Tensor) -> Tensor:
        return t * self.minimum + 0.5 * t.square() * self.slope

    def inverse(self, integral: Tensor) -> Tensor:
        # The root of the quadratic without the cancellation of −β_min + √(…).
        root = (self.minimum**2 + 2 * self.slope * integral).sqrt()
        return 2 * integral / (self.minimum + root)


class VPSDE(VariancePreserving):
    """Variance preserving with linear β: α² = exp(−B), σ² = 1 − exp(−B), λ = −log(exp(B) − 1)."""

    def __init__(
        self, beta_min: float = 0.1, beta_max: float = 20.0, log_snr_shift: float = 0.0
    ) -> None:
        super().__init__(log_snr_shift)
        self.beta = _LinearBeta(beta_min, beta_max)

    def _log_snr(self, t: Tensor) -> Tensor:
        integral = self.beta.integral(t)
        return -integral - torch.log(-torch.expm1(-integral))

    def _time(self, log_snr: Tensor) -> Tensor:
        return self.beta.inverse(softplus(-log_snr))

    def _log_snr_rate(self, t: Tensor) -> Tensor:
        return self.beta.rate(t) / torch.expm1(-self.beta.integral(t))


class CosineVPSDE(VariancePreserving):
    """Variance preserving with α = cos(πu/2), λ = −2 log tan(πu/2).

    u is an affine function of t that takes [T_MIN, 1] to λ = `log_snr_max` … `log_snr_min`.
    """

    def __init__(
        self, log_snr_min: float = -10.0, log_snr_max: float = 14.0, log_snr_shift: float = 0.0
    ) -> None:
        super().__init__(log_snr_shift)
        if not -math.inf < log_snr_min < log_snr_max < math.inf:
            raise ValueError(
                f"log_snr_min must be below log_snr_max, not {log_snr_min} and {log_snr_max}"
            )
        self.angle_start = math.atan(math.exp(-0.5 * log_snr_max))
        angle_end = math.atan(math.exp(-0.5 * log_snr_min))
        self.angle_rate = (angle_end - self.angle_start) / (1 - T_MIN)

    def _angle(self, t: Tensor) -> Tensor:
        return self.angle_start + (t - T_MIN) * self.angle_rate

    def _log_snr(self, t: Tensor) -> Tensor:
        return -2 * torch.log(torch.tan(self._angle(t)))

    def _time(self, log_snr: Tensor) -> Tensor:
        angle = torch.atan(torch.exp(-0.5 * log_snr))
        return T_MIN + (angle - self.angle_start) / self.angle_rate

    def _log_snr_rate(self, t: Tensor) -> Tensor:
        return -4 * self.angle_rate / torch.sin(2 * self._angle(t))


class LogSNRVPSDE(VariancePreserving):
    """Variance preserving with any monotone log-SNR, piecewise linear in time.

    Args:
        log_snr_knots: λ at evenly spaced times from T_MIN to 1; at least two, strictly decreasing.
            Two knots give the schedule that is linear in λ.
        log_snr_shift: See `SDE`.
    """

    def __init__(
        self, log_snr_knots: Sequence[float] = (14.0, -10.0), log_snr_shift: float = 0.0
    ) -> None:
        super().__init__(log_snr_shift)
        self.knots = torch.tensor(log_snr_knots, dtype=torch.float64)
        if self.knots.numel() < 2 or not self.knots.isfinite().all():
            raise ValueError("log_snr_knots must hold at least two finite numbers")
        if not (self.knots.diff() < 0).all():
            raise ValueError("log_snr_knots must strictly decrease")
        self.segment = (1 - T_MIN) / (self.knots.numel() - 1)

    def _log_snr(self, t: Tensor) -> Tensor:
        place = (t - T_MIN) / self.segment
        index = place.floor().clamp(0, self.knots.numel() - 2).long()
        knots = self.knots.to(t.device)
        return knots[index] + (place - index) * (knots[index + 1] - knots[index])

    def _time(self, log_snr: Tensor) -> Tensor:
        knots = self.knots.to(log_snr.device)
        index = torch.searchsorted(-knots, -log_snr.contiguous(), right=True) - 1
        index = index.clamp(0, knots.numel() - 2)
        place = (log_snr - knots[index]) / (knots[index + 1] - knots[index])
        return T_MIN + (index + place) * self.segment

    def kinks(self) -> Tensor:
        """Times of the inner knots."""
        return T_MIN + torch.arange(1, self.knots.numel() - 1).double() * self.segment

    def _log_snr_rate(self, t: Tensor) -> Tensor:
        index = ((t - T_MIN) / self.segment).floor()
        rates = self.knots.diff().to(t.device) / self.segment
        return rates[index.clamp(0, rates.numel() - 1).long()]


class SubVPSDE(SDE):
    """Sub-VP with linear β: α² = exp(−B) as in VP, but σ = 1 − exp(−B), always below that of VP."""

    def __init__(
        self, beta_min: float = 0.1, beta_max: float = 20.0, log_snr_shift: float = 0.0
    ) -> None:
        super().__init__(log_snr_shift)
        self.beta = _LinearBeta(beta_min, beta_max)

    def _log_snr(self, t: Tensor) -> Tensor:
        integral = self.beta.integral(t)
        return -integral - 2 * torch.log(-torch.expm1(-integral))

    def _time(self, log_snr: Tensor) -> Tensor:
        # α / (1 − α²) = exp(λ/2) =: r is a quadratic in α whose root is α = 2r / (1 + √(1 + 4r²)).
        ratio = torch.exp(0.5 * log_snr)
        alpha = 2 * ratio / (1 + (1 + 4 * ratio.square()).sqrt())
        return self.beta.inverse(-2 * torch.log(alpha))

    def _log_snr_rate(self, t: Tensor) -> Tensor:
        integral = self.beta.integral(t)
        return -self.beta.rate(t) * (1 - 2 / torch.expm1(-integral) * torch.exp(-integral))

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta.integral(t)

    def _log_alpha_rate(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta.rate(t)


class VESDE(SDE):
    """Variance exploding: α = 1, σ = σ_min (σ_max / σ_min)ᵗ, so that λ is linear in time."""

    def __init__(
        self, sigma_min: float = 1e-3, sigma_max: float = 150.0, log_snr_shift: float = 0.0
    ) -> None:
        super().__init__(log_snr_shift)
        if not sigma_min > 0:
            raise ValueError(f"sigma_min must be positive, not {sigma_min}")
        if not sigma_min < sigma_max < math.inf:
            raise ValueError(f"sigma_max must be finite and above sigma_min, not {sigma_max}")
        self.log_sigma_min = math.log(sigma_min)
        self.log_sigma_rate = math.log(sigma_max / sigma_min)

    def _log_snr(self, t: Tensor) -> Tensor:
        return -2 * (self.log_sigma_min + t * self.log_sigma_rate)

    def _time(self, log_snr: Tensor) -> Tensor:
        return (-0.5 * log_snr - self.log_sigma_min) / self.log_sigma_rate

    def _log_snr_rate(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -2 * self.log_sigma_rate, dtype=torch.float64)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t, dtype=torch.float64)

    def _log_alpha_rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t, dtype=torch.float64)


SDES: dict[str, Callable[..., SDE]] = {
    "vp": VPSDE,
    "cosine": CosineVPSDE,
    "log_snr": LogSNRVPSDE,
    "sub_vp": SubVPSDE,
    "ve": VESDE,
}


def make_sde(kind: str, **parameters: float | Sequence[float]) -> SDE:
    """Build an SDE by its name in `SDES`.

    Raises:
        ValueError: The name, a parameter's name or its value is wrong; the message tells which.
    """
    if kind not in SDES:
        raise ValueError(f"sde must be one of {', '.join(SDES)}, not {kind!r}")
    try:
        return SDES[kind](**parameters)
    except TypeError as error:
        raise ValueError(f"sde {kind!r} does not take these parameters: {error}") from None


def resolution_log_snr_shift(image_size: int, reference: int = 64) -> float:
    """The shift 2 log(reference / image_size) that keeps the noise of a downsampled image alike.

    Averaging k × k pixels divides the noise variance by k², so that an image k times as large
    needs its λ lowered by 2 log k to hide as much (Hoogeboom et al. 2023).
    """
    return 2 * math.log(reference / image_size)
