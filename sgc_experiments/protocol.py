"""What every classifier of this project can do, generative or discriminative."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from sgc_experiments import ranks
from sgc_experiments.batches import ImageSet
from sgc_experiments.calibration import Calibration
from sgc_experiments.training import TrainingResult
from sgc_experiments.training_settings import TrainingSettings


@dataclass(frozen=True)
class Prediction:
    """Evidence for N images and C classes.

    Attributes:
        log_odds: log p(x|c) − log p(x|0), float64 (N, C); column 0 is 0.
        standard_error: Of the log-odds, from the spread of the draws; float64 (N, C), 0 for models
            that draw nothing, NaN if there were too few draws to tell.
        evaluations: Network evaluations per image, all classes together.
        out_of_distribution: Whether each image is unlike those that the model was fitted on, bool
            (N,); None if the model cannot tell.
    """

    log_odds: np.ndarray
    standard_error: np.ndarray
    evaluations: float
    out_of_distribution: np.ndarray | None = None


class Classifier(Protocol):
    """What every model of this project can do, generative or not."""

    classes: tuple[str, ...]
    calibration: Calibration
    prior: np.ndarray

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
        """Train, choose what is chosen on validation images, and calibrate."""
        ...

    def predict_log_odds(self, images: np.ndarray) -> Prediction:
        """Evidence for uint16 images (N, S, S), before calibration."""
        ...

    def posterior(self, log_odds: np.ndarray, prior: Sequence[float] | None = None) -> np.ndarray:
        """Calibrated probabilities (N, C); the prior is that of training unless given."""
        ...

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and config.json."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        ...


def predict_together(classifier: Classifier, images: np.ndarray) -> Prediction:
    """`Classifier.predict_log_odds`, where there are several ranks by each for its share.

    To be called on every rank, and gives every rank the whole; images (N, S, S).
    """
    shares = ranks.shared_out(classifier.predict_log_odds, images)
    if len(shares) == 1 or not len(images):
        return shares[0]
    sizes = [len(share.log_odds) for share in shares]
    known = [s.out_of_distribution for s in shares if s.out_of_distribution is not None]
    return Prediction(
        log_odds=np.concatenate([share.log_odds for share in shares]),
        standard_error=np.concatenate([share.standard_error for share in shares]),
        evaluations=float(np.average([share.evaluations for share in shares], weights=sizes)),
        out_of_distribution=np.concatenate(known) if len(known) == len(shares) else None,
    )
