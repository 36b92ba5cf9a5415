"""How a model is trained: the settings that every model shares."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from sgc_experiments.augmentation import AugmentationSettings
from sgc_experiments.errors import UserError


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained, whatever the model.

    Attributes:
        budget: "steps:N", "images:N" (images seen) or "seconds:N" (wall time).
        batch_size: Images per step.
        accumulate: Parts that a batch is cut into, whose gradients are added up: the memory of one
            part for the step of the whole. Each part draws its own noise.
        gradient_checkpointing: Keep no activations inside blocks but compute them again on the way
            back: less memory, more time.
        learning_rate: Peak of the schedule: linear warm-up, then a cosine to zero.
        weight_decay: Of AdamW, on weights of two or more dimensions.
        warmup: Fraction of the budget.
        ema_decay: Of the moving average of the weights, which is what is validated and kept.
        gradient_clip: Largest norm of the gradient.
        balanced: Draw every class equally often.
        unlabelled_share: Share of images without a label in the batches, if there are any.
        validate_every: Steps between validations; the budget's end is always validated.
        patience: Stop after this many validations without improvement; 0 never stops early.
        precision: "fp32", "bf16" (autocast), or "auto": bf16 where the hardware multiplies it.
        device: "cpu", "cuda", "cuda:1", …, or "auto".
        nonfinite: At a loss that is not finite, "stop", or "skip" the batch.
        compile: Compile the network; pays for long runs only.
        log_every: Steps between calls of `on_step` with training metrics.
        checkpoint_every: Steps between checkpoints, if a folder for them is given.
        seed: Of the order of images and all noise.
        progress: Show a progress bar on standard error.
        augmentation: Applied to every training batch.

    Raises:
        ValueError: A setting is out of range; the message names it.
    """

    budget: str = "steps:2000"
    batch_size: int = 32
    accumulate: int = 1
    gradient_checkpointing: bool = False
    learning_rate: float = 6e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    ema_decay: float = 0.998
    gradient_clip: float = 1.0
    balanced: bool = True
    unlabelled_share: float = 0.5
    validate_every: int = 200
    patience: int = 0
    precision: str = "auto"
    device: str = "auto"
    nonfinite: str = "stop"
    compile: bool = False
    log_every: int = 10
    checkpoint_every: int = 200
    seed: int = 0
    progress: bool = True
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)

    def __post_init__(self) -> None:
        Budget.parse(self.budget)
        for name in ("batch_size", "validate_every", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 1 <= self.accumulate <= self.batch_size:
            raise ValueError(
                f"accumulate must be in [1, batch_size = {self.batch_size}], not {self.accumulate}"
            )
        for name in ("learning_rate", "gradient_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("warmup", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if not 0 < self.unlabelled_share < 1:
            raise ValueError(f"unlabelled_share must be in (0, 1), not {self.unlabelled_share}")
        for name in ("weight_decay", "patience"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision must be auto, fp32 or bf16, not {self.precision!r}")
        if self.nonfinite not in ("stop", "skip"):
            raise ValueError(f"nonfinite must be stop or skip, not {self.nonfinite!r}")

    def learning_rate_after(self, spent: float) -> float:
        """The rate after a share of the budget: linear up, then half a cosine down to 0."""
        if spent < self.warmup:
            return self.learning_rate * (spent + 1e-3) / (self.warmup + 1e-3)
        left = (spent - self.warmup) / (1 - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * left))


class Budget(NamedTuple):
    """How long to train: `amount` of `unit`."""

    unit: str
    amount: int

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """From "steps:800", "images:50000" or "seconds:120".

        Raises:
            ValueError: The text is none of these.
        """
        unit, _, amount = text.partition(":")
        if unit not in ("steps", "images", "seconds") or not amount.isdecimal() or not int(amount):
            raise ValueError(f"budget must be steps:N, images:N or seconds:N, not {text!r}")
        return cls(unit, int(amount))

    def spent(self, steps: int, images: int, seconds: float) -> float:
        """The share of the budget that is used, 0 to 1."""
        used = {"steps": steps, "images": images, "seconds": seconds}[self.unit]
        return min(1.0, used / self.amount)


class Moment(NamedTuple):
    """How far a training has come: `step` steps, and the share `spent` of its budget."""

    step: int
    spent: float


def choose_device(name: str) -> torch.device:
    """The torch device for "auto" (a GPU if there is one) or a device's name.

    Raises:
        UserError: This machine, or this build of torch, has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device={name} is not there (torch sees {torch.cuda.device_count()} CUDA device(s)); "
            "give another, or device=auto."
        )
    return device


def has_fast_bf16(device: torch.device, network: torch.nn.Module) -> bool:
    """Whether a network is faster in bfloat16 than in float32 on this device.

    On a CPU, products of matrices can be; grouped convolutions take twice the time.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if any(isinstance(m, torch.nn.Conv2d) and m.groups > 1 for m in network.modules()):
        return False
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
