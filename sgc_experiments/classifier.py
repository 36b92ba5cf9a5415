"""The score-based generative classifier: p(c|x) ∝ p(x|c) π_c.

A score network learns the images of every class; an image is classified by how well each class's
denoiser explains it. The log-odds are the paired difference of evidence lower bounds over a band of
noise levels (see `likelihood`), which with its number of draws forms the evaluation plan, chosen on
validation images after training and stored with the model.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sgc_experiments.batches import (
    ImageSet,
    check_images,
    check_labels,
    evenly_spaced,
    from_model_range,
    to_model_range,
)
from sgc_experiments.calibration import Calibration, class_prior, fit_calibration
from sgc_experiments.classifier_settings import NETWORK, ClassifierSettings
from sgc_experiments.errors import UserError
from sgc_experiments.evaluation_plan import EvaluationPlan, choose_band, planning_draws
from sgc_experiments.evidence import evidence_maps, shared_image_errors
from sgc_experiments.freed_memory import keep_freed_memory
from sgc_experiments.model_files import read_model, sound_model, write_model
from sgc_experiments.objective import DenoisingScoreMatching
from sgc_experiments.prediction import (
    find_typical,
    make_rounds,
    predict,
    predict_by_flow,
    predict_sequentially,
)
from sgc_experiments.protocol import Classifier, Prediction, predict_together
from sgc_experiments.sampling import sample
from sgc_experiments.score_network import ScoreNetwork
from sgc_experiments.sde import make_sde
from sgc_experiments.training import TrainingResult, train
from sgc_experiments.training_settings import TrainingSettings, choose_device
from sgc_experiments.transfer import transferred_weights
from sgc_experiments.typicality import TypicalSet

__all__ = ["Classifier", "Prediction", "ScoreBasedClassifier"]

KIND = "sgc"
_PLANNING_IMAGES = 256


class ScoreBasedClassifier:
    """A class-conditional diffusion model, used as a classifier.

    Args:
        classes: Names, in the order of the labels.
        image_size: Side S of the images in pixels.
        **settings: The others of `ClassifierSettings`.

    Raises:
        ValueError: A parameter is out of range; the message names it.
    """

    def __init__(
        self,
        classes: Sequence[str] = ("benign", "malignant"),
        image_size: int = 32,
        **settings: Any,
    ) -> None:
        self.settings = ClassifierSettings(classes, image_size, **settings)
        self.classes = tuple(classes)
        self.image_size = image_size
        self.sde = make_sde(self.settings.sde, **self.settings.sde_parameters)
        self.objective = DenoisingScoreMatching(
            self.sde,
            log_snr_min=self.settings.log_snr_min,
            log_snr_max=self.settings.log_snr_max,
            weighting=self.settings.weighting,
            log_snr_sampling=self.settings.log_snr_sampling,
            hybrid_weight=self.settings.hybrid_weight,
            label_smoothing=self.settings.label_smoothing,
            label_dropout=self.settings.label_dropout,
        )
        keep_freed_memory()
        self.network = self._make_network(seed=0)
        if image_size < 1 or image_size % self.network.stride:
            raise ValueError(
                f"image_size must be a multiple of {self.network.stride} for this network "
                f"(patch and number of channels), not {image_size}"
            )
        self.plan = EvaluationPlan(
            self.settings.log_snr_min, self.settings.log_snr_max, self.settings.draws
        )
        self.calibration = Calibration.identity(len(self.classes))
        self.prior: np.ndarray = np.full(len(self.classes), 1 / len(self.classes))
        self.typical: TypicalSet | None = None
        self._start: ScoreBasedClassifier | None = None

    def _make_network(self, seed: int) -> ScoreNetwork:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ScoreNetwork(
                len(self.classes), **{name: getattr(self.settings, name) for name in NETWORK}
            )

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
        """Train, choose the evaluation plan, calibrate, learn what is typical.

        Training starts from random weights, or from those of `start_from`.

        Args:
            train_set: Labels −1 are images without a label, learnt as the null class.
            validation_set: All labelled. If it is empty, the last weights, the whole range of
                noise levels and uncalibrated log-odds are used, and no image is called unlike
                the training images.
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
        check_labels(train_set.labels, self.classes)
        self.network = self._make_network(settings.seed)
        if self._start is not None:
            self.network.load_state_dict(self._weights_of(self._start))
        self._standardise_to(train_set.images)
        self.objective.forget()
        result = train(
            self.network,
            self.objective,
            train_set,
            validation_set,
            settings=settings,
            model=asdict(self.settings),
            checkpoint_dir=checkpoint_dir,
            on_step=on_step,
            should_stop=should_stop,
        )
        self.prior = class_prior(train_set.labels, len(self.classes))
        self.plan = self._choose_plan(train_set, validation_set, settings)
        log_odds = predict_together(self, validation_set.images).log_odds
        self.calibration = fit_calibration(log_odds, validation_set.labels)
        self.typical = find_typical(
            self.network, self.plan, train_set.images, validation_set.images, prior=self.prior
        )
        return result

    def start_from(self, other: "ScoreBasedClassifier") -> None:
        """Let `fit` start from another model's weights; classes and image size may differ.

        Raises:
            UserError: The other model's network has another shape or output; which is named.
        """
        differing = self.settings.network_unlike(other.settings)
        if differing:
            raise UserError(
                "The network to start from is another one; give what it was made with: "
                f"{' '.join(differing)}."
            )
        self._weights_of(other)
        self._start = other

    def _weights_of(self, other: "ScoreBasedClassifier") -> dict[str, Tensor]:
        return transferred_weights(self.network, self.classes, other.network, other.classes)

    def _standardise_to(self, images: np.ndarray) -> None:
        """Make the pixels of the training images have mean 0 and variance 1."""
        values = to_model_range(images[evenly_spaced(len(images), 1024)])
        self.network.pixel_mean.copy_(values.mean())
        self.network.pixel_std.copy_(values.std().clamp(min=1e-3))

    def _choose_plan(
        self, train_set: ImageSet, validation_set: ImageSet, settings: TrainingSettings
    ) -> EvaluationPlan:
        low, high = self.settings.log_snr_min, self.settings.log_snr_max
        plan = EvaluationPlan(low, high, self.settings.draws, settings.augmentation.symmetries())
        if len(np.unique(validation_set.labels)) < 2:
            return plan
        known = np.flatnonzero(train_set.labels >= 0)
        # Fitted images are told apart too well, but at much the same levels as new ones.
        wanted = max(0, _PLANNING_IMAGES - len(validation_set.labels))
        others = known[evenly_spaced(len(known), wanted)]
        images, labels = (
            np.concatenate([new[:_PLANNING_IMAGES], fitted[others]])
            for new, fitted in zip(validation_set, train_set, strict=True)
        )
        count = planning_draws(plan.draws, high - low)
        draws = plan.make_draws(self.image_size, draws=count)
        title = "choosing noise levels" if settings.progress else ""
        errors = shared_image_errors(self.network, images, draws, title=title)
        low, high = choose_band(errors, draws.log_snr, labels, low, high, draws=plan.draws)
        return replace(plan, log_snr_min=low, log_snr_max=high)

    def predict_log_odds(
        self,
        images: np.ndarray,
        *,
        evaluations: int | None = None,
        stop_z: float | None = None,
        seed: int = 0,
    ) -> Prediction:
        """Log-odds of the classes.

        Args:
            images: uint16 (N, S, S).
            evaluations: Network evaluations per image over all classes, instead of the plan's;
                rounded down to a multiple of the number of classes. With `stop_z` the most that
                an image may take, in multiples of the plan's and never less than these.
            stop_z: None spends the same on every image. Otherwise an image gets more than the
                plan's draws only while the sign of its evidence is in doubt, that is, within so
                many standard errors; `Prediction.evaluations` is then the mean.
            seed: Of the noise, which is the same for every image.

        Raises:
            UserError: Images of another size.
            ValueError: `evaluations` below the number of classes, `stop_z` not positive, or either
                with `likelihood` "ode", which knows neither.
        """
        check_images(images, self.image_size)
        if self.settings.likelihood == "ode":
            if (evaluations, stop_z) != (None, None):
                raise ValueError("evaluations and stop_z are those of likelihood=elbo")
            once = self.plan.make_draws(self.image_size, draws=self.plan.draws, seed=seed)
            return predict_by_flow(
                self.network,
                self.sde,
                images,
                once,
                settings=self.settings.flow(seed),
                prior=self.prior,
                typical=self.typical,
            )
        draws = self._draws(evaluations)
        if stop_z is None:
            once = self.plan.make_draws(self.image_size, draws=draws, seed=seed)
            return predict(self.network, images, once, prior=self.prior, typical=self.typical)
        if not stop_z > 0:
            raise ValueError(f"stop_z must be positive, not {stop_z}")
        rounds = make_rounds(self.plan, self.image_size, draws, seed)
        return predict_sequentially(
            self.network,
            images,
            rounds,
            prior=self.prior,
            typical=self.typical,
            calibration=self.calibration,
            z=stop_z,
        )

    def posterior(self, log_odds: np.ndarray, prior: Sequence[float] | None = None) -> np.ndarray:
        """Calibrated probabilities (N, C) from log-odds (N, C).

        Args:
            log_odds: From `predict_log_odds`.
            prior: Class probabilities π; None means those of the training images.
        """
        return self.calibration.posterior(log_odds, self.prior if prior is None else prior)

    def explain(
        self,
        images: np.ndarray,
        *,
        target: int = 1,
        reference: int = 0,
        evaluations: int | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """Per-pixel log-odds of class `target` against `reference`.

        The same paired differences as in `predict_log_odds`, not summed over the image: a map's
        sum is the log-odds for the same `evaluations` and `seed`, those of the bound: a flow has
        no parts that belong to pixels.

        Args:
            images: uint16 (N, S, S).
            target: Class that positive values speak for.
            reference: Class that negative values speak for.
            evaluations: As in `predict_log_odds`.
            seed: As in `predict_log_odds`.

        Returns:
            Float64 (N, S, S), nats per pixel.
        """
        check_images(images, self.image_size)
        draws = self.plan.make_draws(self.image_size, draws=self._draws(evaluations), seed=seed)
        return evidence_maps(self.network, images, draws, target=target, reference=reference)

    def sample(
        self,
        label: int,
        count: int,
        *,
        sampler: str = "probability_flow",
        guidance: float = 1.0,
        seed: int = 0,
    ) -> np.ndarray:
        """Draw images of a class, for looking at: uint16 (count, S, S).

        Args:
            label: Index of the class; the number of classes is the null class.
            count: How many.
            sampler: See `sampling.sample`.
            guidance: See `sampling.sample`; other than 1 needs `label_dropout` in training.
            seed: Of the noise.
        """
        x = sample(
            self.network,
            torch.full((count,), label, device=self.network.pixel_mean.device),
            self.image_size,
            log_snr_min=self.settings.log_snr_min,
            log_snr_max=self.settings.log_snr_max,
            sampler=sampler,
            guidance=guidance,
            seed=seed,
        )
        return from_model_range(x * self.network.pixel_std + self.network.pixel_mean)

    def to(self, device: str) -> Self:
        """Move the network to "cpu", "cuda", … or "auto"."""
        self.network.to(choose_device(device))
        return self

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and configuration (JSON) into `folder`."""
        config = {
            "kind": KIND,
            "arguments": asdict(self.settings),
            "plan": self.plan.as_dict(),
            "calibration": asdict(self.calibration),
            "prior": self.prior.tolist(),
            "typical": None if self.typical is None else asdict(self.typical),
        }
        write_model(folder, config, self.network.state_dict())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            UserError: The folder holds no sound model of this kind.
        """
        with sound_model(folder):
            config, tensors = read_model(folder, KIND)
            model = cls(**config["arguments"])
            plan = config["plan"]
            model.plan = EvaluationPlan(**plan | {"symmetries": tuple(plan["symmetries"])})
            model.calibration = Calibration.from_dict(config["calibration"])
            model.prior = np.array(config["prior"])
            # Models of before have no typical set.
            if config.get("typical") is not None:
                model.typical = TypicalSet.from_dict(config["typical"])
            model.network.load_state_dict(tensors)
        model.network.eval()
        return model

    def _draws(self, evaluations: int | None) -> int:
        if evaluations is None:
            return self.plan.draws
        draws = evaluations // len(self.classes)
        if draws < 1:
            raise ValueError(
                f"evaluations must be at least one per class ({len(self.classes)}), "
                f"not {evaluations}"
            )
        return draws
