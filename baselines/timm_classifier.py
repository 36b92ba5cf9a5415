"""Any network of timm behind the classifier protocol: what the generative one is held against.

Trained by the same loop on the same images, with the same augmentation, early stopping, moving
average of the weights and calibration as the generative classifier; and, as there, its evidence is
averaged over the symmetries that the augmentation draws from.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from baselines.classification_loss import ClassificationLoss, logits_of
from baselines.discriminative import DiscriminativeClassifier
from baselines.networks import GreyImageNetwork, build_network
from sgc_experiments.batches import ImageSet, evenly_spaced, to_model_range
from sgc_experiments.errors import UserError
from sgc_experiments.freed_memory import keep_freed_memory
from sgc_experiments.training import TrainingResult, train
from sgc_experiments.training_settings import TrainingSettings

# Below this, the statistics of a batch say more of the batch than of the images.
_SMALLEST_SOUND_BATCH = 8
_MEASURED_IMAGES = 1024

logger = logging.getLogger(__name__)


class TimmClassifier(DiscriminativeClassifier):
    """A timm network as a classifier of grey images.

    Args:
        classes: Names, in the order of the labels.
        image_size: Side S of the images in pixels.
        model: Its name in timm, with or without the tag of pretrained weights.
        pretrained: Start from timm's weights, downloaded once.
        weights: Start from the weights of this file instead; see `weights.load_weights`.
        class_weights: Weigh each class's loss by the inverse of its share, for training without
            balanced batches.
        label_smoothing: See `ClassificationLoss`; also `mixup`.
        mixup: 0 for none.
        drop_rate: Dropout before the last layer.
        drop_path_rate: Stochastic depth, where the network has it.
        small_patches: See `networks.build_network`; by default where the weights are random.
        symmetries: Codes of `augmentation.apply_symmetry` over which logits are averaged; `fit`
            sets those of its augmentation.

    Raises:
        UserError: An unknown model, a size that it cannot take, weights that cannot be had or do
            not fit.
        ValueError: A rate is out of range; the message names it.
    """

    kind = "timm"

    def __init__(
        self,
        classes: Sequence[str] = ("benign", "malignant"),
        image_size: int = 48,
        *,
        model: str,
        pretrained: bool = False,
        weights: str | Path | None = None,
        class_weights: bool = False,
        label_smoothing: float = 0.1,
        mixup: float = 0.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        small_patches: bool | None = None,
        symmetries: Sequence[int] = (0,),
    ) -> None:
        rates = {
            "label_smoothing": label_smoothing,
            "drop_rate": drop_rate,
            "drop_path_rate": drop_path_rate,
        }
        for name, value in rates.items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), not {value}")
        if not mixup >= 0:
            raise ValueError(f"mixup must not be negative, not {mixup}")
        if small_patches is None:
            small_patches = not pretrained and weights is None
        super().__init__(
            classes,
            image_size,
            model=model,
            class_weights=class_weights,
            mixup=mixup,
            small_patches=small_patches,
            symmetries=list(symmetries),
            **rates,
        )
        self._start: dict[str, Any] = {
            "pretrained": pretrained,
            "weights": Path(weights) if weights else None,
        }
        keep_freed_memory()
        self.network = self._make_network(seed=0)

    def _make_network(self, seed: int) -> GreyImageNetwork:
        names = ("image_size", "small_patches", "drop_rate", "drop_path_rate")
        return build_network(
            self.arguments["model"],
            n_classes=len(self.classes),
            seed=seed,
            **self._start,
            **{name: self.arguments[name] for name in names},
        ).eval()

    def _train(
        self,
        train_set: ImageSet,
        validation_set: ImageSet,
        *,
        settings: TrainingSettings,
        **hooks: Any,
    ) -> TrainingResult:
        self._check_batch(settings.batch_size)
        self.network = self._make_network(settings.seed)
        some = evenly_spaced(len(train_set.images), _MEASURED_IMAGES)
        self.network.standardise_to(to_model_range(train_set.images[some]))
        weigh = self.arguments["class_weights"]
        counts = torch.bincount(torch.as_tensor(train_set.labels), minlength=len(self.classes))
        objective = ClassificationLoss(
            class_weights=len(train_set.labels) / (len(counts) * counts) if weigh else None,
            label_smoothing=self.arguments["label_smoothing"],
            mixup=self.arguments["mixup"],
            balanced=settings.balanced or weigh,
        )
        made_with = {k: v for k, v in self.arguments.items() if k != "symmetries"}
        result = train(
            self.network,
            objective,
            train_set,
            validation_set,
            settings=settings,
            model=made_with,
            **hooks,
        )
        self.arguments["symmetries"] = list(settings.augmentation.symmetries())
        return result

    def _check_batch(self, batch_size: int) -> None:
        name = self.arguments["model"]
        batch_norms = (m for m in self.network.modules() if isinstance(m, _BatchNorm))
        if batch_size >= _SMALLEST_SOUND_BATCH or not any(batch_norms):
            return
        if batch_size == 1:
            raise UserError(f"{name} normalises over the batch: batch_size must be at least 2.")
        logger.warning(
            "%s normalises over the batch, and batch_size=%d is small for that; %d or more, or a "
            "network with another normalisation (such as resnet50_gn or convnext_atto), is safer.",
            name, batch_size, _SMALLEST_SOUND_BATCH,
        )  # fmt: skip

    def _prior_of_training(self, settings: TrainingSettings) -> np.ndarray:
        if settings.balanced or self.arguments["class_weights"]:
            return np.full(len(self.classes), 1 / len(self.classes))
        return self.prior

    def _logits(self, images: np.ndarray) -> np.ndarray:
        return logits_of(self.network, images, self.arguments["symmetries"]).numpy()

    def _evaluations(self) -> float:
        return float(len(self.arguments["symmetries"]))

    def _tensors(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def _set_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.network.load_state_dict(tensors)
