"""From a configuration to a classifier, and from a folder back to one.

This is where a parameter of the command line becomes an argument of the scientific core. timm and
scikit-learn, which take seconds to import, are imported for the models that need them.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from sgc_experiments.augmentation import AugmentationSettings
from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.config import GENERATIVE_MODEL, TrainConfig, settled
from sgc_experiments.errors import UserError
from sgc_experiments.protocol import Classifier
from sgc_experiments.training import TrainingSettings

if TYPE_CHECKING:
    from baselines.discriminative import DiscriminativeClassifier

_NETWORK_AND_OBJECTIVE = (
    "image_size",
    "channels",
    "blocks",
    "patch",
    "class_conditioning",
    "dropout",
    "prediction",
    "standardisation",
    "log_snr_min",
    "log_snr_max",
    "log_snr_sampling",
    "weighting",
    "hybrid_weight",
    "label_smoothing",
    "label_dropout",
    "evaluations",
    "likelihood",
    "ode_solver",
    "ode_steps",
    "ode_probes",
)
_TIMM = (
    "pretrained",
    "weights",
    "class_weights",
    "label_smoothing",
    "mixup",
    "drop_rate",
    "drop_path_rate",
)
_CHANGES = ("rotation", "scale", "shift", "contrast", "brightness")
# Models that are no network: where the class stands.
_SIMPLE = {
    "logistic_regression": ("baselines.simple", "LogisticRegressionClassifier"),
    "majority": ("baselines.simple", "MajorityClassifier"),
}
_SDE_PARAMETERS = {
    "vp": ("beta_min", "beta_max", "log_snr_shift"),
    "sub_vp": ("beta_min", "beta_max", "log_snr_shift"),
    "cosine": ("log_snr_shift",),
    "log_snr": ("log_snr_knots", "log_snr_shift"),
    "ve": ("sigma_min", "sigma_max", "log_snr_shift"),
}


def build_classifier(config: TrainConfig, classes: tuple[str, ...]) -> Classifier:
    """Make the untrained classifier that ``config`` describes."""
    if config.model == GENERATIVE_MODEL:
        try:
            return ScoreBasedClassifier(
                classes,
                sde=config.sde,
                sde_parameters={
                    # Lists, which come back from JSON as they were.
                    name: list(value) if isinstance(value, tuple) else value
                    for name in _SDE_PARAMETERS[config.sde]
                    for value in [getattr(config, name)]
                },
                **{name: getattr(config, name) for name in _NETWORK_AND_OBJECTIVE},
            )
        except ValueError as error:  # a combination that only the network can judge
            raise UserError(f"The model cannot be made: {error}.") from None
    if config.model in _SIMPLE:
        return _simple(config.model)(classes, settled(config.image_size))
    from baselines.timm_classifier import TimmClassifier

    return TimmClassifier(
        classes,
        settled(config.image_size),
        model=config.model,
        **{name: getattr(config, name) for name in _TIMM},
    )


def training_settings(config: TrainConfig) -> TrainingSettings:
    """The part of ``config`` that the training loop reads."""
    return TrainingSettings(
        budget=config.budget,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        gradient_checkpointing=config.gradient_checkpointing,
        learning_rate=settled(config.learning_rate),
        weight_decay=config.weight_decay,
        ema_decay=config.ema_decay,
        balanced=config.balanced,
        unlabelled_share=config.unlabelled_share,
        validate_every=config.validate_every,
        patience=config.patience,
        precision=config.precision,
        device=config.device,
        nonfinite=config.nonfinite,
        checkpoint_every=config.checkpoint_every,
        compile=config.compile,
        seed=config.seed,
        augmentation=_augmentation(config),
    )


def _augmentation(config: TrainConfig) -> AugmentationSettings:
    if not config.augment:
        return AugmentationSettings.none()
    return AugmentationSettings(
        horizontal_flip=True,
        vertical_flip=True,
        transpose=settled(config.transpose),
        **{name: getattr(config, name) for name in _CHANGES},
    )


def load_classifier(folder: Path) -> Classifier:
    """Load a classifier that its ``save`` wrote.

    Raises:
        UserError: the folder holds no classifier of a known kind.
    """
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            "The model's folder holds no readable config.json; register the model again."
        ) from None
    if kind == GENERATIVE_MODEL:
        return ScoreBasedClassifier.load(folder)
    if kind in _SIMPLE:
        return _simple(kind).load(folder)
    from baselines.timm_classifier import TimmClassifier

    if kind != TimmClassifier.kind:
        raise UserError(f"The model is of an unknown kind, {kind!r}; it needs a newer version.")
    return TimmClassifier.load(folder)


def _simple(kind: str) -> type[DiscriminativeClassifier]:
    module, name = _SIMPLE[kind]
    found: type[DiscriminativeClassifier] = getattr(importlib.import_module(module), name)
    return found


def check_model(name: str) -> None:
    """Check a model's name before anything expensive is done.

    Raises:
        UserError: there is no such model.
    """
    if name != GENERATIVE_MODEL and name not in _SIMPLE:
        from baselines.networks import check_name

        check_name(name)
