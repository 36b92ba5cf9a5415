"""Two baselines without a deep network: a floor under every comparison.

Logistic regression on features that take no training: quantiles of brightness, contrast and edge
strength at several scales, and a coarse thumbnail. A network that does not beat it has learnt next
to nothing. And the majority class, which no one may lose to.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_sample_weight
from torch import Tensor

from baselines.discriminative import DiscriminativeClassifier
from sgc_experiments.batches import ImageSet
from sgc_experiments.training import TrainingResult
from sgc_experiments.training_settings import TrainingSettings

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_SCALES = (1.0, 2.0, 4.0)
_THUMBNAIL = 4
# Inverse strengths of the penalty, strongest first; validation images choose.
_PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_MONITOR = "validation_loss"


def simple_features(image: np.ndarray) -> np.ndarray:
    """Features (F,) of one uint16 image (S, S), none of them learnt."""
    x = image.astype(np.float64) / 65535
    values = [np.quantile(x, _QUANTILES), [x.mean(), x.std()]]
    for scale in _SCALES:
        smooth = gaussian_filter(x, scale)
        detail = x - smooth
        edges = gaussian_gradient_magnitude(x, scale)
        values.append([detail.std(), np.abs(detail).max(), edges.mean(), edges.std(), edges.max()])
    side = len(x) // _THUMBNAIL * _THUMBNAIL
    blocks = x[:side, :side].reshape(_THUMBNAIL, side // _THUMBNAIL, _THUMBNAIL, -1)
    thumbnail = blocks.mean((1, 3)).ravel()
    return np.concatenate([*values, thumbnail])


class LogisticRegressionClassifier(DiscriminativeClassifier):
    """Logistic regression on `simple_features`; nothing of the budget and augmentation applies.

    Args:
        classes: Names, in the order of the labels.
        image_size: Side S of the images in pixels.

    Raises:
        ValueError: Fewer than two classes.
    """

    kind = "logistic_regression"

    def __init__(
        self, classes: Sequence[str] = ("benign", "malignant"), image_size: int = 48
    ) -> None:
        super().__init__(classes, image_size)
        self.parameters: dict[str, np.ndarray] = {}

    def _train(
        self,
        train_set: ImageSet,
        validation_set: ImageSet,
        *,
        settings: TrainingSettings,
        **hooks: Any,
    ) -> TrainingResult:
        started = time.monotonic()
        features = _features(train_set.images)
        # A feature without spread stays 0, instead of being blown up by rounding.
        mean, scale = features.mean(0), np.maximum(features.std(0), 1e-6)
        weight = "balanced" if settings.balanced else None
        history, candidates = [], []
        for step, penalty in enumerate(_PENALTIES, start=1):
            model = LogisticRegression(C=penalty, class_weight=weight, max_iter=2000)
            model.fit((features - mean) / scale, train_set.labels)
            candidates.append({"mean": mean, "scale": scale} | _per_class(model))
            self.parameters = candidates[-1]
            history.append({"step": step, _MONITOR: self._loss(validation_set, weight)})
        best = int(np.argmin([validation[_MONITOR] for validation in history]))
        self.parameters = candidates[best]
        return TrainingResult(
            steps=len(history),
            images=len(features),
            seconds=time.monotonic() - started,
            best_step=best + 1,
            monitor=_MONITOR,
            best_value=history[best][_MONITOR],
            stopped="budget",
            history=history,
        )

    def _loss(self, validation_set: ImageSet, weight: str | None) -> float:
        """Cross-entropy on validation images; 0 without any, so that the first candidate wins."""
        images, labels = validation_set
        if len(images) == 0:
            return 0.0
        posterior = softmax(self._logits(images), axis=1)
        loss: float = log_loss(
            labels,
            posterior,
            sample_weight=compute_sample_weight(weight, labels),
            labels=range(len(self.classes)),
        )
        return loss

    def _prior_of_training(self, settings: TrainingSettings) -> np.ndarray:
        if settings.balanced:
            return np.full(len(self.classes), 1 / len(self.classes))
        return self.prior

    def _logits(self, images: np.ndarray) -> np.ndarray:
        values = (_features(images) - self.parameters["mean"]) / self.parameters["scale"]
        logits: np.ndarray = values @ self.parameters["weight"].T + self.parameters["bias"]
        return logits

    def _evaluations(self) -> float:
        return 0.0

    def _tensors(self) -> dict[str, Tensor]:
        return {name: torch.as_tensor(value) for name, value in self.parameters.items()}

    def _set_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.parameters = {name: tensor.numpy() for name, tensor in tensors.items()}


class MajorityClassifier(DiscriminativeClassifier):
    """Gives every image the class shares of training: its answer is always the commonest class.

    Args:
        classes: Names, in the order of the labels.
        image_size: Side S of the images in pixels.

    Raises:
        ValueError: Fewer than two classes.
    """

    kind = "majority"

    def __init__(
        self, classes: Sequence[str] = ("benign", "malignant"), image_size: int = 48
    ) -> None:
        super().__init__(classes, image_size)

    def _train(
        self,
        train_set: ImageSet,
        validation_set: ImageSet,
        *,
        settings: TrainingSettings,
        **hooks: Any,
    ) -> TrainingResult:
        entropy = float(-(self.prior * np.log(self.prior)).sum())
        return TrainingResult(
            steps=1,
            images=len(train_set.images),
            seconds=0.0,
            best_step=1,
            monitor=_MONITOR,
            best_value=entropy,
            stopped="budget",
            history=[{"step": 1, _MONITOR: entropy}],
        )

    def _prior_of_training(self, settings: TrainingSettings) -> np.ndarray:
        return self.prior

    def _logits(self, images: np.ndarray) -> np.ndarray:
        return np.tile(np.log(self.prior), (len(images), 1))

    def _evaluations(self) -> float:
        return 0.0

    def _tensors(self) -> dict[str, Tensor]:
        return {"prior": torch.as_tensor(self.prior)}

    def _set_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The prior stands in the configuration already."""


def _features(images: np.ndarray) -> np.ndarray:
    return np.stack([simple_features(image) for image in images])


def _per_class(model: LogisticRegression) -> dict[str, np.ndarray]:
    """Weights (C, F) and biases (C,); scikit-learn gives one row for two classes."""
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:
        weight, bias = np.vstack([np.zeros_like(weight), weight]), np.append(0.0, bias)
    return {"weight": weight, "bias": bias}
