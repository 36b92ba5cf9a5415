"""The discriminative objective: cross-entropy with label smoothing, class weights and mixup.

    L = −Σ_c w_c t_c log softmax_c(f(x)),

where t is the smoothed label. With mixup (Zhang et al., arXiv:1710.09412), x and t are convex
combinations of two images of the batch, of weight m ~ Beta(a, a) drawn once per batch.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from sgc_experiments.augmentation import apply_symmetry
from sgc_experiments.batches import to_model_range
from sgc_experiments.evaluation_plan import mean_pairwise_auc
from sgc_experiments.training_settings import Moment

# Pixels per forward pass without gradients: bounds the memory of activations.
_PIXELS_AT_ONCE = 2**20


class ClassificationLoss:
    """Training objective of a network that gives logits; see `training.Objective`.

    Args:
        class_weights: w (C,), or None for equal ones.
        label_smoothing: Share of each label that is spread over all classes.
        mixup: a; 0 leaves images as they are.
        balanced: Whether the training treats the classes as equally common; the validation loss
            then is the mean of the classes' mean losses.
    """

    monitor = "validation_loss"

    def __init__(
        self,
        *,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.1,
        mixup: float = 0.0,
        balanced: bool = True,
    ) -> None:
        self.class_weights, self.balanced = class_weights, balanced
        self.label_smoothing, self.mixup = label_smoothing, mixup

    def loss(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        moment: Moment,
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch (B, 1, S, S), and metrics for the log; `network` in training mode.

        It is the same at every moment.
        """
        other, share = self._partners(len(labels), generator)
        if other is not None:
            images = share * images + (1 - share) * images[other]
        logits = network(images).float()
        targets = one_hot(labels, logits.shape[1]).float()
        if other is not None:
            targets = share * targets + (1 - share) * targets[other]
        weights = None if self.class_weights is None else self.class_weights.to(logits)
        loss = cross_entropy(logits, targets, weight=weights, label_smoothing=self.label_smoothing)
        accuracy = (logits.argmax(1) == labels).float().mean()
        return loss, {"train_accuracy": float(accuracy)}

    def _partners(self, batch: int, generator: torch.Generator) -> tuple[Tensor | None, float]:
        """Whom each image is mixed with, and its own share; None without mixup."""
        if not self.mixup:
            return None, 1.0
        device = generator.device
        other = torch.randperm(batch, generator=generator, device=device)
        seed = torch.randint(2**62, (), generator=generator, device=device)
        return other, float(np.random.default_rng(int(seed)).beta(self.mixup, self.mixup))

    def validate(
        self, network: nn.Module, images: np.ndarray, labels: np.ndarray
    ) -> dict[str, float]:
        """Loss, accuracy and AUC on held-out uint16 images (N, S, S), labels int64 (N,)."""
        logits = logits_of(network, images).double()
        target = torch.as_tensor(labels)
        losses = cross_entropy(logits, target, reduction="none")
        weights = torch.ones_like(losses)
        if self.balanced:
            weights = 1 / torch.bincount(target, minlength=logits.shape[1])[target].double()
        return {
            "validation_loss": float((weights * losses).sum() / weights.sum()),
            "validation_accuracy": float((logits.argmax(1) == target).double().mean()),
            "validation_auc": mean_pairwise_auc(logits.numpy(), labels),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """No running statistics."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing to put back."""


@torch.no_grad()
def logits_of(network: nn.Module, images: np.ndarray, symmetries: Sequence[int] = (0,)) -> Tensor:
    """Logits, float32 (N, C) on the CPU, averaged over symmetries of the square.

    Args:
        network: In evaluation mode, in which it looks at every image alone.
        images: uint16 (N, S, S), N ≥ 1.
        symmetries: Codes of `augmentation.apply_symmetry`.
    """
    device = next(network.parameters()).device
    at_once = max(1, _PIXELS_AT_ONCE // images[0].size)
    parts = []
    for start in range(0, len(images), at_once):
        x = to_model_range(images[start : start + at_once]).to(device)
        views = [network(apply_symmetry(x, code)).float() for code in symmetries]
        parts.append(torch.stack(views).mean(0).cpu())
    return torch.cat(parts)
