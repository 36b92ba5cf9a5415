"""What several processes do together for one model: fit it, and predict with it.

Each reads the images from its own machine's cache; of the first process they get the split, the
model as it is before training and the settings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sgc_experiments.batches import ImageSet
from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.config import TrainConfig
from sgc_experiments.data.splits import Split
from sgc_experiments.experiments.datasets import Data, load_images_once
from sgc_experiments.experiments.unlabelled import Unlabelled, find_unlabelled, join
from sgc_experiments.protocol import Classifier, predict_together
from sgc_experiments.training_settings import TrainingSettings


@dataclass(frozen=True)
class SharedFit:
    """An order to train, see `team.Order`; the arguments are those of `fitting.fit`."""

    config: TrainConfig
    split: Split
    classifier: Classifier
    settings: TrainingSettings

    def take_part(self, kept: object) -> tuple[Classifier, Data]:
        """Train without folder and callbacks, which are the first process's."""
        data = Data(load_images_once(self.config), self.split)
        self.classifier.fit(
            training_images(data, unlabelled_images(self.config, data, self.classifier)),
            data.image_set("validation"),
            settings=replace(self.settings, progress=False),
        )
        return self.classifier, data


@dataclass(frozen=True)
class SharedPrediction:
    """An order to predict a subset with the model that was fitted last."""

    subset: str

    def take_part(self, kept: tuple[Classifier, Data]) -> tuple[Classifier, Data]:
        """Predict this process's share of the images."""
        classifier, data = kept
        predict_together(classifier, data.image_set(self.subset).images)
        return kept


def unlabelled_images(config: TrainConfig, data: Data, classifier: Classifier) -> Unlabelled | None:
    """The images without a label, if there are any and the model learns from such."""
    return find_unlabelled(config, data) if isinstance(classifier, ScoreBasedClassifier) else None


def training_images(data: Data, unlabelled: Unlabelled | None) -> ImageSet:
    """The images of train, with those that have no label."""
    train_set = data.image_set("train")
    return join(train_set, unlabelled) if unlabelled else train_set
