"""What discriminative classifiers share: labels, calibration, the stored configuration.

A discriminative model estimates p(c|x) under the class shares π' that its training showed it:
balanced batches or class weights make them equal. Its log-odds log p(x|c) − log p(x|0) are then
the logits less log π', to which calibration and prior are applied as to those of the generative
classifier.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from sgc_experiments.batches import ImageSet, check_images, check_labels
from sgc_experiments.calibration import Calibration, class_prior, fit_calibration
from sgc_experiments.model_files import read_model, sound_model, write_model
from sgc_experiments.protocol import Prediction, predict_together
from sgc_experiments.training import TrainingResult
from sgc_experiments.training_settings import TrainingSettings


class DiscriminativeClassifier(ABC):
    """The classifier protocol around a model that gives logits.

    Args:
        classes: Names, in the order of the labels.
        image_size: Side S of the images in pixels.
        arguments: JSON-able arguments that, with these two, make the model again.

    Raises:
        ValueError: Fewer than two classes.
    """

    kind: ClassVar[str]

    def __init__(self, classes: Sequence[str], image_size: int, **arguments: Any) -> None:
        if len(classes) < 2:
            raise ValueError(f"classes must be at least two, not {len(classes)}")
        self.classes = tuple(classes)
        self.image_size = image_size
        self.arguments: dict[str, Any] = {
            "classes": list(classes),
            "image_size": image_size,
        } | arguments
        self.calibration = Calibration.identity(len(classes))
        self.prior = np.full(len(classes), 1 / len(classes))
        self.prior_seen = self.prior

    def fit(
        self,
        train_set: ImageSet,
        validation_set: ImageSet,
        *,
        settings: TrainingSettings,
        checkpoint_dir: Path | None = None,
        on_step: Callable[[dict[str, float], int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> TrainingResult:
        """Train from the beginning, and calibrate on the validation images.

        Args:
            train_set: Images without a label (−1) are left out.
            validation_set: All labelled. If it is empty, probabilities are not calibrated.
            settings: See `TrainingSettings`.
            checkpoint_dir: See `training.train`.
            on_step: See `training.train`.
            should_stop: See `training.train`.

        Raises:
            UserError: A class has no training image, or images have another size.
            TrainingDiverged: See `training.train`.
        """
        for images, _ in (train_set, validation_set):
            check_images(images, self.image_size)
        labelled = train_set.labels >= 0
        if not labelled.all():
            train_set = ImageSet(train_set.images[labelled], train_set.labels[labelled])
        check_labels(train_set.labels, self.classes)
        self.prior = class_prior(train_set.labels, len(self.classes))
        self.prior_seen = self._prior_of_training(settings)
        result = self._train(
            train_set,
            validation_set,
            settings=settings,
            checkpoint_dir=checkpoint_dir,
            on_step=on_step,
            should_stop=should_stop,
        )
        log_odds = predict_together(self, validation_set.images).log_odds
        self.calibration = fit_calibration(log_odds, validation_set.labels)
        return result

    def predict_log_odds(self, images: np.ndarray) -> Prediction:
        """Log-odds of the classes for uint16 images (N, S, S), before calibration.

        Raises:
            UserError: Images of another size.
        """
        check_images(images, self.image_size)
        if len(images) == 0:
            nothing = np.zeros((0, len(self.classes)))
            return Prediction(nothing, nothing, self._evaluations())
        logits = self._logits(images).astype(np.float64) - np.log(self.prior_seen)
        log_odds = logits - logits[:, :1]
        return Prediction(log_odds, np.zeros_like(log_odds), self._evaluations())

    def posterior(self, log_odds: np.ndarray, prior: Sequence[float] | None = None) -> np.ndarray:
        """Calibrated probabilities (N, C) from log-odds (N, C).

        Args:
            log_odds: From `predict_log_odds`.
            prior: Class probabilities π; None means those of the training images.
        """
        return self.calibration.posterior(log_odds, self.prior if prior is None else prior)

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `config.json` into `folder`, which is made if missing."""
        config = {
            "kind": self.kind,
            "arguments": self.arguments,
            "calibration": asdict(self.calibration),
            "prior": self.prior.tolist(),
            "prior_seen": self.prior_seen.tolist(),
        }
        write_model(folder, config, self._tensors())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            UserError: The folder holds no sound model of this kind.
        """
        with sound_model(folder):
            config, tensors = read_model(folder, cls.kind)
            model = cls(**config["arguments"])
            model.calibration = Calibration.from_dict(config["calibration"])
            model.prior = np.array(config["prior"])
            model.prior_seen = np.array(config["prior_seen"])
            model._set_tensors(tensors)
        return model

    @abstractmethod
    def _train(
        self,
        train_set: ImageSet,
        validation_set: ImageSet,
        *,
        settings: TrainingSettings,
        **hooks: Any,
    ) -> TrainingResult:
        """Fit the model; all training images are labelled."""

    @abstractmethod
    def _prior_of_training(self, settings: TrainingSettings) -> np.ndarray:
        """The class shares (C,) that the logits take for granted; `prior` is set."""

    @abstractmethod
    def _logits(self, images: np.ndarray) -> np.ndarray:
        """Logits (N, C) of uint16 images (N, S, S), N ≥ 1."""

    @abstractmethod
    def _evaluations(self) -> float:
        """Network evaluations per image."""

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """All that is learnt."""

    @abstractmethod
    def _set_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `_tensors` gave."""
