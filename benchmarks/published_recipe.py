"""The recipe of arXiv:2502.17727, written from its description: what the benchmarks compare with.

A UNet of five levels (32 to 512 channels, batch normalisation) gives the score s(x, t, y) of a VP
SDE, trained with E ‖σ s + ε‖² by Adam, without a moving average. An image's class is that of the
highest log p(x|y) by the probability-flow ODE: RK45 of SciPy at rtol = atol = 1e-5, the state in
NumPy, the divergence from one Hutchinson probe.

The published likelihood forgets the class; here it is passed on, as it should be.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn
from torch.nn.functional import silu

from sgc_experiments.batches import BatchOrder, ImageSet, to_model_range
from sgc_experiments.likelihood import Denoiser
from sgc_experiments.score_network import repeat
from sgc_experiments.sde import SDE, T_MIN

TOLERANCE = 1e-5
BATCH_SIZE, LEARNING_RATE = 32, 1e-4
_DECAY, _DECAY_EPOCHS = 0.2, 20
_CHANNELS = (32, 64, 128, 256, 512)
_EMBEDDING, _SCALE = 256, 30.0


class PublishedNetwork(nn.Module):
    """The score s(x, t, y) of standardised single-channel images, as ε̂ to the outside.

    Fulfils `likelihood.Denoiser`.

    Args:
        classes: Number of classes.
        sde: A variance-preserving SDE.
    """

    def __init__(self, classes: int, sde: SDE) -> None:
        super().__init__()
        self.classes, self.sde = classes, sde
        self.register_buffer("frequencies", torch.randn(_EMBEDDING // 2) * _SCALE)
        self.time_embedding = nn.Linear(_EMBEDDING, _EMBEDDING)
        self.class_embedding = nn.Embedding(classes, _EMBEDDING)
        fine, coarse = _CHANNELS[:-1], _CHANNELS[1:]
        self.stem = _Stage(nn.Conv2d(1, fine[0], 3, padding=1))
        self.down = nn.ModuleList(
            _Stage(nn.Conv2d(a, b, 3, stride=2, padding=1))
            for a, b in zip(fine, coarse, strict=True)
        )
        # All but the deepest level get the features of the way down beside their own.
        widths = [2 * width for width in coarse[:-1]] + [coarse[-1]]
        self.up = nn.ModuleList(
            _Stage(nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=1))
            for a, b in zip(widths, fine, strict=True)
        )
        self.head = nn.Conv2d(2 * fine[0], 1, 3, padding=1)

    def score(self, x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        """∇ log p_t(x | y), (B, 1, S, S) for S a multiple of 16, t (B,) and classes (B,)."""
        angles = 2 * math.pi * t.to(x)[:, None] * self.frequencies
        time = self.time_embedding(torch.cat([angles.sin(), angles.cos()], 1))
        condition = silu(time + self.class_embedding(classes))
        features = [self.stem(x, condition)]
        for stage in self.down:
            features.append(stage(features[-1], condition))
        h = features.pop()
        for stage in reversed(self.up):
            h = torch.cat([stage(h, condition), features.pop()], 1)
        _, sigma = self.sde.marginal_prob(t)
        return self.head(h) / sigma.to(x)[:, None, None, None]

    def forward(self, z: Tensor, log_snr: Tensor, classes: Tensor) -> Tensor:
        """ε̂ = −σ s at λ (B,)."""
        t = self.sde.time(log_snr)
        _, sigma = self.sde.marginal_prob(t)
        return -sigma.to(z)[:, None, None, None] * self.score(z, t, classes)

    def all_classes(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """ε̂ of every class, (B, C, 1, S, S)."""
        classes = torch.arange(self.classes).repeat(len(z))
        eps = self(repeat(z, self.classes), repeat(log_snr, self.classes), classes)
        return eps.unflatten(0, (len(z), self.classes))


class _Stage(nn.Module):
    """SiLU(BatchNorm(Conv(x) + Linear(condition)))."""

    def __init__(self, convolution: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.convolution = convolution
        self.condition = nn.Linear(_EMBEDDING, convolution.out_channels)
        self.norm = nn.BatchNorm2d(convolution.out_channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return silu(self.norm(self.convolution(x) + self.condition(condition)[:, :, None, None]))


def training_steps(
    network: PublishedNetwork,
    train_set: ImageSet,
    standardise: Callable[[np.ndarray], Tensor],
    *,
    seed: int = 0,
) -> Iterator[int]:
    """Train `network` in place without end; yields the number of steps taken after each.

    Args:
        network: Left in training mode.
        train_set: Images, flipped at random in both directions.
        standardise: uint16 (B, S, S) to (B, 1, S, S) of unit variance.
        seed: Of batches and noise.
    """
    generator = torch.Generator().manual_seed(seed)
    order = BatchOrder(train_set.labels, batch_size=BATCH_SIZE, balanced=False, seed=seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    epoch = math.ceil(len(train_set.labels) / BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, _DECAY_EPOCHS * epoch, _DECAY)
    step = 0
    while True:
        indices = order.batch(step)
        x = standardise(train_set.images[indices])
        for axis in (2, 3):
            flipped = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
            x = torch.where(flipped, x.flip(axis), x)
        labels = torch.as_tensor(train_set.labels[indices])
        t = T_MIN + (1 - T_MIN) * torch.rand(len(x), generator=generator, dtype=torch.float64)
        noise = torch.randn(x.shape, generator=generator)
        alpha, sigma = (v.to(x)[:, None, None, None] for v in network.sde.marginal_prob(t))
        network.train()
        score = network.score(alpha * x + sigma * noise, t, labels)
        loss = (sigma * score + noise).square().flatten(1).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        step += 1
        yield step


def dataset_standardisation(images: np.ndarray) -> Callable[[np.ndarray], Tensor]:
    """Images in units of the training pixels' standard deviation, about their mean."""
    pixels = to_model_range(images)
    mean, std = pixels.mean(), pixels.std()
    return lambda batch: (to_model_range(batch) - mean) / std


def log_likelihood(
    denoiser: Denoiser,
    sde: SDE,
    images: Tensor,
    label: int,
    probe: Tensor,
    *,
    log_snr_min: float,
    log_snr_max: float,
) -> tuple[np.ndarray, int]:
    """Log p(x|y) of a batch of images under one class, by RK45 on the batch as one system.

    Args:
        denoiser: ε̂; the score is −ε̂ / σ.
        sde: A variance-preserving SDE.
        images: (B, 1, S, S), standardised.
        label: The class.
        probe: Hutchinson's, like `images`.
        log_snr_min: Where the flow ends, so that a network is not asked beyond what it knows.
        log_snr_max: Where it starts.

    Returns:
        Nats (B,), and the number of network evaluations, each with a backward pass.
    """
    labels = torch.full((len(images),), label)

    def rates(t: float, state: np.ndarray) -> np.ndarray:
        time = torch.full((len(images),), t, dtype=torch.float64)
        f, g = (v.float()[:, None, None, None] for v in sde.drift_and_diffusion(time))
        _, sigma = sde.marginal_prob(time)
        x = torch.from_numpy(state[: images.numel()]).float().reshape(images.shape)
        with torch.enable_grad():
            x.requires_grad_()
            score = -denoiser(x, sde.log_snr(time), labels) / sigma.float()[:, None, None, None]
            drift = f * x - 0.5 * g**2 * score
            (product,) = torch.autograd.grad((drift * probe).sum(), x)
        divergence = (product * probe).flatten(1).sum(1)
        flat = [drift.detach().numpy().ravel(), divergence.numpy()]
        return np.concatenate(flat).astype(np.float64)

    ends = sde.time(torch.tensor([log_snr_max, log_snr_min], dtype=torch.float64)).tolist()
    start = np.concatenate([images.numpy().ravel(), np.zeros(len(images))]).astype(np.float64)
    solution = solve_ivp(rates, ends, start, method="RK45", rtol=TOLERANCE, atol=TOLERANCE)
    end = torch.from_numpy(solution.y[:, -1])
    prior = sde.prior_log_prob(end[: images.numel()].reshape(images.shape))
    return (prior + end[images.numel() :]).numpy(), solution.nfev
