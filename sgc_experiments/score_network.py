"""The class-conditional score network: a small UNet that sees (z, λ, c).

The network works in variance-preserving coordinates, z = α x + σ ε with α² = sigmoid(λ) and
σ² = sigmoid(−λ), for standardised images x (mean 0, variance 1 over the training pixels). One
output F is read as one of three predictions, and every other quantity follows from it in
`predicted_noise`:

    "eps":  ε̂ = F
    "x0":   x̂ = F              ε̂ = (z − α F) / σ
    "v":    v̂ = F = α ε̂ − σ x̂   ε̂ = σ z + α F,     x̂ = α z − σ F

The score of p(z_λ | c) is −ε̂ / σ.

For speed on a CPU, pixels are folded into channels before the first convolution (wide layers at
full resolution are what costs), skips are added rather than concatenated, resolution changes are
pixel (un)shuffles, and memory is channels-last. All normalisation is per image (GroupNorm), so that
an image's score never depends on the batch it is in.

References: Ho et al., arXiv:2006.11239 (UNet, ε); Salimans & Ho, arXiv:2202.00512 (v);
Perez et al., FiLM, arXiv:1709.07871; Hoogeboom et al., arXiv:2301.11093 (folded pixels).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, silu
from torch.utils.checkpoint import checkpoint

PREDICTIONS = ("eps", "v", "x0")
CLASS_CONDITIONING = ("all", "decoder", "head")
STANDARDISATIONS = ("image", "dataset")
_FLAT = 1e-3  # standard deviation below which an image of range [−1, 1] counts as constant
_FREQUENCIES = 16  # Fourier features of λ: periods from 100 down to 1 unit of log-SNR


def alpha_sigma(log_snr: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """α and σ of variance-preserving coordinates for λ of shape (B,).

    Both have the dtype of `like` (B, ...) and a shape that broadcasts with it.
    """
    log_snr = log_snr.reshape(-1, *[1] * (like.dim() - 1))
    return torch.sigmoid(log_snr).sqrt().to(like), torch.sigmoid(-log_snr).sqrt().to(like)


def predicted_noise(prediction: str, output: Tensor, z: Tensor, log_snr: Tensor) -> Tensor:
    """ε̂ from the network's output F; `output` and `z` are (B, 1, H, W), λ is (B,)."""
    if prediction == "eps":
        return output
    alpha, sigma = alpha_sigma(log_snr, z)
    if prediction == "v":
        return sigma * z + alpha * output
    return (z - alpha * output) / sigma


class _LogSNREmbedding(nn.Module):
    """λ (B,) → (B, width): Fourier features and two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frequencies: Tensor
        periods = torch.logspace(2, 0, _FREQUENCIES, dtype=torch.float64)
        self.register_buffer("frequencies", 2 * math.pi / periods, persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(2 * _FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, log_snr: Tensor) -> Tensor:
        angles = log_snr.double()[:, None] * self.frequencies
        features = torch.cat([angles.sin(), angles.cos()], dim=1)
        embedding: Tensor = self.layers(features.to(next(self.parameters()).dtype))
        return embedding


class _Block(nn.Module):
    """x + Conv(SiLU(FiLM(Norm(Conv(SiLU(Norm(x))))))), resolution and channels unchanged."""

    def __init__(self, channels: int, condition: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = _norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = _norm(channels)
        self.film = nn.Linear(condition, 2 * channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        for parameter in self.conv2.parameters():  # each block starts as the identity
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        h = silu(_modulate(self.norm2(h), self.film(condition)))
        change: Tensor = self.conv2(self.dropout(h))
        return x + change


def _modulate(h: Tensor, film: Tensor) -> Tensor:
    """h (B, C, H, W) with the scales and shifts (B, 2 C) of its channels."""
    scale, shift = film[:, :, None, None].chunk(2, dim=1)
    return torch.addcmul(shift, h, 1 + scale)


def _norm(channels: int) -> nn.GroupNorm:
    # One group: in channels-last memory eight of them cost ten times as much on a CPU.
    return nn.GroupNorm(1, channels)


class ScoreNetwork(nn.Module):
    """ε̂(z, λ, c) for single-channel square images.

    Args:
        classes: Number of classes C. Label C is the null class: images without a label.
        channels: Channels per level, finest first; each level halves the resolution. The paper's
            network is (32, 64, 128, 256, 512) with `patch=1`, 384 × 384 pixels.
        blocks: Residual blocks per level and direction.
        patch: Side of the square of pixels folded into channels by the stem.
        prediction: "eps", "v" or "x0".
        class_conditioning: "all": every block sees the class. "decoder": only the way up does, so
            that the way down, which has `blocks` per level against one on the way up, is computed
            once for all classes. "head": only the last normalisation does, so that all classes cost
            little more than one.
        dropout: Rate inside the blocks, in training.
        standardisation: "dataset": by `pixel_mean` and `pixel_std`, of all training pixels.
            "image": every image by its own mean and standard deviation, which are then side
            information: the density is that of the image given these two numbers. Lesions in dense
            and in fatty tissue differ tenfold in contrast; side by side at their own scale, they
            show their shape at the same noise levels.

    Raises:
        ValueError: A parameter is out of range; the message names it.
    """

    def __init__(
        self,
        classes: int,
        *,
        channels: Sequence[int] = (32, 64, 96, 128),
        blocks: int = 2,
        patch: int = 2,
        prediction: str = "v",
        class_conditioning: str = "all",
        dropout: float = 0.0,
        standardisation: str = "dataset",
    ) -> None:
        super().__init__()
        _check(classes, channels, blocks, patch, dropout)
        _check_choice("prediction", prediction, PREDICTIONS)
        _check_choice("class_conditioning", class_conditioning, CLASS_CONDITIONING)
        _check_choice("standardisation", standardisation, STANDARDISATIONS)
        self.standardisation, self.prediction = standardisation, prediction
        self.classes, self.patch = classes, patch
        self._checkpointing = False
        self.class_in_encoder = class_conditioning == "all"
        self.class_in_decoder = class_conditioning != "head"
        condition = 4 * channels[0]
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.zeros(()))
        self.register_buffer("pixel_std", torch.ones(()))
        self.log_snr_embedding = _LogSNREmbedding(condition)
        self.class_embedding = nn.Embedding(classes + 1, condition)

        def stack(width: int, depth: int) -> nn.ModuleList:
            return nn.ModuleList(_Block(width, condition, dropout) for _ in range(depth))

        self.stem = nn.Conv2d(patch**2, channels[0], 3, padding=1)
        self.down = nn.ModuleList(stack(width, blocks) for width in channels)
        self.shrink = nn.ModuleList(
            nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairwise(channels)
        )
        up_blocks = 1 if class_conditioning == "decoder" else blocks
        self.up = nn.ModuleList(stack(width, up_blocks) for width in channels)
        self.grow = nn.ModuleList(
            nn.Conv2d(coarse, 4 * fine, 1) for fine, coarse in pairwise(channels)
        )
        self.norm = _norm(channels[0])
        self.head_film = nn.Linear(condition, 2 * channels[0])
        self.head = nn.Conv2d(channels[0], patch**2, 3, padding=1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)
        self.to(memory_format=torch.channels_last)

    @property
    def stride(self) -> int:
        """The image side must be a multiple of this number of pixels."""
        return int(self.patch * 2 ** (len(self.down) - 1))

    def standardise(self, images: Tensor) -> Tensor:
        """Images (B, 1, H, W) of any range in the network's coordinates; see `standardisation`."""
        own = self.standardisation == "image"
        mean = images.mean((1, 2, 3), keepdim=True) if own else self.pixel_mean
        return (images - mean) / self.contrast(images)

    def contrast(self, images: Tensor) -> Tensor:
        """What `standardise` divides by: one number, or one per image, (B, 1, 1, 1)."""
        if self.standardisation == "dataset":
            return self.pixel_std
        unbiased = int(images[:1].numel() > 1)  # a single pixel has no spread
        return images.std((1, 2, 3), correction=unbiased, keepdim=True).clamp(min=_FLAT)

    def _encode(self, z: Tensor, condition: Tensor) -> list[Tensor]:
        """Feature maps per level, finest first."""
        h = self.stem(pixel_unshuffle(z, self.patch).contiguous(memory_format=torch.channels_last))
        features = []
        for level, stack in enumerate(self.down):
            if level > 0:
                h = self.shrink[level - 1](h)
            for block in stack.children():
                h = self._apply_block(block, h, condition)
            features.append(h)
        return features

    def _decode(self, features: list[Tensor], condition: Tensor) -> Tensor:
        """The feature map (B, channels[0], H / patch, W / patch) that `_output` reads."""
        h = features[-1]
        for level in reversed(range(len(self.up))):
            if level < len(self.up) - 1:
                h = features[level] + pixel_shuffle(self.grow[level](h), 2)
            for block in self.up[level].children():
                h = self._apply_block(block, h, condition)
        normalised: Tensor = self.norm(h)
        return normalised

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training computes the inside of a block again on the way back, to save memory."""
        self._checkpointing = enable

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the blocks, which `forward` and `several_classes` both go through.

        Arguments as of `torch.compile`. One compilation serves all blocks of a width.
        """
        for module in self.modules():
            if isinstance(module, _Block):
                module.compile(*args, **kwargs)

    def _apply_block(self, block: nn.Module, h: Tensor, condition: Tensor) -> Tensor:
        if self._checkpointing and self.training and torch.is_grad_enabled():
            after: Tensor = checkpoint(block, h, condition, use_reentrant=False)
        else:
            after = block(h, condition)
        return after

    def _output(self, h: Tensor, condition: Tensor) -> Tensor:
        """The output F, (B, 1, H, W)."""
        h = self.head(silu(_modulate(h, self.head_film(condition))))
        return pixel_shuffle(h, self.patch).float()

    def forward(self, z: Tensor, log_snr: Tensor, classes: Tensor) -> Tensor:
        """Predicted noise ε̂.

        Args:
            z: Noisy images in variance-preserving coordinates, (B, 1, H, W) with H and W multiples
                of `stride`.
            log_snr: λ of each image, (B,).
            classes: int64 (B,); `self.classes` is the null class.

        Returns:
            ε̂, (B, 1, H, W).
        """
        level = self.log_snr_embedding(log_snr)
        both = silu(level + self.class_embedding(classes))
        level = silu(level)
        features = self._encode(z, both if self.class_in_encoder else level)
        h = self._decode(features, both if self.class_in_decoder else level)
        return predicted_noise(self.prediction, self._output(h, both), z, log_snr)

    def all_classes(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """ε̂ for every class (not the null class) at the same z and λ; (B, C, 1, H, W)."""
        classes = torch.arange(self.classes, device=z.device).expand(len(z), -1)
        return self.several_classes(z, log_snr, classes)

    def several_classes(self, z: Tensor, log_snr: Tensor, classes: Tensor) -> Tensor:
        """ε̂ for M classes of each image, `classes` int64 (B, M), at the same z and λ.

        Returns:
            (B, M, 1, H, W). What does not see the class is computed once for all of them.
        """
        batch, count = classes.shape
        classes = classes.reshape(-1)
        if self.class_in_encoder:
            eps: Tensor = self(repeat(z, count), repeat(log_snr, count), classes)
            return eps.reshape(batch, count, *eps.shape[1:])
        level = self.log_snr_embedding(log_snr)
        both = silu(repeat(level, count) + self.class_embedding(classes))
        level = silu(level)
        features = self._encode(z, level)
        if self.class_in_decoder:
            h = self._decode([repeat(f, count) for f in features], both)
        else:
            h = repeat(self._decode(features, level), count)
        output = self._output(h, both)
        eps = predicted_noise(self.prediction, output, repeat(z, count), repeat(log_snr, count))
        return eps.reshape(batch, count, *eps.shape[1:])


def repeat(x: Tensor, count: int) -> Tensor:
    """Each row of x (B, ...) `count` times in succession: (B · count, ...)."""
    return x.repeat_interleave(count, dim=0)


def _check(
    classes: int,
    channels: Sequence[int],
    blocks: int,
    patch: int,
    dropout: float,
) -> None:
    if classes < 1:
        raise ValueError(f"classes must be at least 1, not {classes}")
    if not channels or any(width < 1 for width in channels):
        raise ValueError(f"channels must be positive numbers, one per level, not {channels}")
    if blocks < 1:
        raise ValueError(f"blocks must be at least 1, not {blocks}")
    if patch < 1:
        raise ValueError(f"patch must be at least 1, not {patch}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), not {dropout}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
