"""log p(x|c) from the probability-flow ODE of an SDE.

The deterministic flow with the SDE's marginals is, in the SDE's own variables,

    dz/dt = f z − ½ g² ∇log p(z) = f z − ½ σ λ˙ ε̂_c,       since g² = −σ² λ˙ and ∇log p = −ε̂ / σ,

and the log-density along it changes by minus the divergence, so that from t₀ near 0 to t = 1

    log p(x|c) = log p_1(z_1) + ∫ ∇·(dz/dt) dt + D log α(t₀),         z_{t₀} = α(t₀) x.

The divergence is the exact trace, or Hutchinson's estimate vᵀ (∂/∂z dz/dt) v with E vvᵀ = I, one
backward pass for a probe v. Probes and everything else are shared by the classes.

Solvers: Dormand-Prince 5(4) with adaptive steps in t (torchdiffeq), each image integrated on its
own, since a step size chosen for a batch would make a result depend on the batch; or a Runge-Kutta
method of order 2 (Heun) or 4 on a fixed grid, even in λ, for many images at once. Per unit of λ,
and in variance-preserving coordinates, all SDEs have one and the same flow,
dz/dλ = ½ σ² z − ½ σ ε̂_c, and differ only in the range of λ; that is the form in which these
integrate.

References: Song et al., arXiv:2011.13456, appendix D; Grathwohl et al., FFJORD, arXiv:1810.01367;
Skilling 1989 and Hutchinson 1990 (the trace); Karras et al., arXiv:2206.00364 (Heun).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sgc_experiments.likelihood import Denoiser, LikelihoodEstimate
from sgc_experiments.score_network import repeat
from sgc_experiments.sde import SDE

State = tuple[Tensor, Tensor]  # z and a divergence, or the rates of both

PROBES = ("rademacher", "gaussian")
# For each stage of a step the weights of the slopes before it; then those of the step itself.
_TABLEAUS: dict[str, tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]] = {
    "heun": (((), (1.0,)), (1 / 2, 1 / 2)),
    "rk4": (((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
SOLVERS = ("dopri5", *_TABLEAUS)
DIVERGENCES = ("hutchinson", "exact")


@dataclass(frozen=True)
class OdeSettings:
    """How the flow is integrated.

    Attributes:
        divergence: "hutchinson", or "exact", which takes D backward passes.
        probe: "rademacher" (least variance) or "gaussian".
        probes: Number of Hutchinson probes; their spread gives the standard error.
        solver: "dopri5", "heun" or "rk4".
        tolerance: Relative and absolute, of dopri5. The paper's is 1e-5.
        steps: Of "heun", of two evaluations each, or of "rk4", of four.
        log_snr_min: The flow ends here, or where the SDE does; so that a network is not asked
            beyond the noise levels it was trained on.
        log_snr_max: The flow starts here, or where the SDE does.
        seed: Of the probes.

    Raises:
        ValueError: A setting is out of range; the message names it.
    """

    divergence: str = "hutchinson"
    probe: str = "rademacher"
    probes: int = 1
    solver: str = "dopri5"
    tolerance: float = 1e-5
    steps: int = 64
    log_snr_min: float = -math.inf
    log_snr_max: float = math.inf
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("divergence", DIVERGENCES),
            ("probe", PROBES),
            ("solver", SOLVERS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}"
                )
        for name in ("probes", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must be in (0, 1), not {self.tolerance}")
        if not self.log_snr_min < self.log_snr_max:
            raise ValueError("log_snr_min must be below log_snr_max")


def make_probes(kind: str, count: int, shape: torch.Size, seed: int) -> Tensor:
    """`count` vectors v of `shape` with E vvᵀ = I, float32 (count, ...)."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "gaussian":
        return torch.randn(count, *shape, generator=generator)
    return torch.randint(0, 2, (count, *shape), generator=generator).float() * 2 - 1


def hutchinson_trace(
    function: Callable[[Tensor], Tensor], z: Tensor, probe: Tensor
) -> tuple[Tensor, Tensor]:
    """`function(z)` (B, ...) and vᵀ (∂function/∂z) v per row, (B,), for probes v like z.

    Rows of `function(z)` must depend on the same row of z alone.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = function(z)
        (product,) = torch.autograd.grad((value * probe).sum(), z)
    return value.detach(), (product * probe).flatten(1).sum(1)


def exact_trace(function: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """`function(z)` and the trace of ∂function/∂z per row; one backward pass per dimension."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = function(z)
        flat = value.flatten(1)
        trace = torch.zeros(len(z), dtype=z.dtype, device=z.device)
        for j in range(flat.shape[1]):
            (row,) = torch.autograd.grad(flat[:, j].sum(), z, retain_graph=True)
            trace += row.flatten(1)[:, j]
    return value.detach(), trace


def probability_flow_ode(
    denoiser: Denoiser,
    sde: SDE,
    images: Tensor,
    *,
    settings: OdeSettings | None = None,
    batch_size: int = 64,
) -> LikelihoodEstimate:
    """Log p(x|c) of every image and class.

    Args:
        denoiser: Network in variance-preserving coordinates.
        sde: Whose flow is followed.
        images: (N, ...) in the denoiser's coordinates (standardised).
        settings: See `OdeSettings`.
        batch_size: Network evaluations at once, with Heun's method.

    Returns:
        Standard errors are those of the Hutchinson probes: NaN with one probe, 0 if exact.
        Evaluations count each image, class and probe at each time once.
    """
    settings = settings or OdeSettings()
    probes = settings.probes if settings.divergence == "hutchinson" else 1
    rows = 1 if settings.solver == "dopri5" else max(1, batch_size // (denoiser.classes * probes))
    values = torch.empty(len(images), denoiser.classes, probes, dtype=torch.float64)
    evaluations = torch.empty(len(images), dtype=torch.float64)
    for start in range(0, len(images), rows):
        part = slice(start, start + rows)
        flow = _Flow(denoiser, sde, images[part], settings, probes)
        values[part] = flow.log_likelihood().cpu()
        evaluations[part] = flow.calls * denoiser.classes * probes
    odds = values - values[:, :1]

    def error(samples: Tensor) -> Tensor:
        if settings.divergence == "exact":
            return torch.zeros_like(samples[:, :, 0])
        if probes == 1:
            return torch.full_like(samples[:, :, 0], math.nan)
        return samples.std(2) / math.sqrt(probes)

    return LikelihoodEstimate(
        log_likelihood=values.mean(2),
        standard_error=error(values),
        log_odds=odds.mean(2),
        log_odds_error=error(odds),
        evaluations=evaluations,
    )


class _Flow:
    """The joint flow of (z, accumulated divergence) for images × classes × probes."""

    def __init__(
        self, denoiser: Denoiser, sde: SDE, images: Tensor, settings: OdeSettings, probes: int
    ) -> None:
        self.denoiser, self.sde, self.settings = denoiser, sde, settings
        self.shape = (len(images), denoiser.classes, probes)
        self.images = repeat(images, denoiser.classes * probes)
        self.labels = repeat(torch.arange(denoiser.classes), probes).repeat(len(images))
        self.labels = self.labels.to(images.device)
        vectors = make_probes(settings.probe, probes, images.shape[1:], settings.seed)
        self.probe = vectors.to(images).repeat(
            len(images) * denoiser.classes, *[1] * (images.dim() - 1)
        )
        low, high = sde.log_snr_range()
        self.ends = torch.tensor(
            [min(high, settings.log_snr_max), max(low, settings.log_snr_min)],
            dtype=torch.float64,
        )
        self.calls = 0

    def _along(self, drift: float, noise: float, unit: float, log_snr: Tensor, z: Tensor) -> State:
        """Rate drift · z − noise · ε̂(unit · z) and its divergence, per row."""
        self.calls += 1
        levels = log_snr.expand(len(z)).to(z.device)

        def function(z: Tensor) -> Tensor:
            eps = self.denoiser(unit * z, levels, self.labels).to(z.dtype)
            return drift * z - noise * eps

        if self.settings.divergence == "exact":
            return exact_trace(function, z)
        return hutchinson_trace(function, z, self.probe)

    def log_likelihood(self) -> Tensor:
        """One log p(x|c) per image, class and probe, float64 (N, C, P)."""
        integrate = self._dopri5 if self.settings.solver == "dopri5" else self._fixed_steps
        return integrate().reshape(self.shape)

    def _dopri5(self) -> Tensor:
        """In the SDE's own variables and time."""
        from torchdiffeq import odeint  # brings half of scipy, which only this solver needs

        times = self.sde.time(self.ends)
        alpha, sigma = self.sde.marginal_prob(times)
        scale = torch.hypot(alpha, sigma)

        def rates(t: Tensor, state: State) -> State:
            t = t.detach().double().cpu()
            alpha, sigma = self.sde.marginal_prob(t)
            drift, _ = self.sde.drift_and_diffusion(t)
            noise = 0.5 * sigma * self.sde.log_snr_rate(t)
            unit = 1 / torch.hypot(alpha, sigma)
            velocity, divergence = self._along(
                float(drift), float(noise), float(unit), self.sde.log_snr(t), state[0]
            )
            return velocity, divergence.to(state[1].dtype)

        x = self.images
        start = (x * float(alpha[0]), torch.zeros(len(x), dtype=x.dtype, device=x.device))
        kinks = self.sde.kinks()
        inside = kinks[(kinks > times[0]) & (kinks < times[1])]
        # The solver would step beyond the end and interpolate, to where an SDE is not defined.
        path, divergence = odeint(
            rates,
            start,
            times.to(x.device),
            rtol=self.settings.tolerance,
            atol=self.settings.tolerance,
            method="dopri5",
            options={"step_t": times[1:], "jump_t": inside},
        )
        volume = x[0].numel() * float(alpha[0].log() - scale[1].log())
        end: Tensor = path[-1] / float(scale[1])
        change: Tensor = divergence[-1] + volume
        return _standard_normal_log_prob(end) + change

    def _fixed_steps(self) -> Tensor:
        """In λ and variance-preserving coordinates."""
        stages, weights = _TABLEAUS[self.settings.solver]
        first, last = self.ends.tolist()
        grid = torch.linspace(first, last, self.settings.steps + 1, dtype=torch.float64)
        step = float(self.ends.diff()) / self.settings.steps
        log_alpha = 0.5 * logsigmoid(grid[0])
        z = self.images * float(log_alpha.exp())
        total = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        for level in grid[:-1]:
            slopes: list[Tensor] = []
            start = z
            for before, weight in zip(stages, weights, strict=True):
                ahead = start
                for share, slope in zip(before, slopes, strict=True):
                    ahead = ahead + step * share * slope
                slope, trace = self._per_log_snr(level + step * sum(before), ahead)
                slopes.append(slope)
                z = z + step * weight * slope
                total += step * weight * trace.double()
        return _standard_normal_log_prob(z) + total + z[0].numel() * float(log_alpha)

    def _per_log_snr(self, log_snr: Tensor, z: Tensor) -> State:
        variance = float(torch.sigmoid(-log_snr))
        return self._along(0.5 * variance, 0.5 * math.sqrt(variance), 1.0, log_snr, z)


def _standard_normal_log_prob(z: Tensor) -> Tensor:
    """Float64 (B,), nats."""
    z = z.double().flatten(1)
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))
