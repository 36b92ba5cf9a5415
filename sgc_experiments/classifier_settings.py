"""How a score-based classifier is made: its SDE, network, objective and likelihood estimator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sgc_experiments.probability_flow import OdeSettings

LIKELIHOODS = ("elbo", "ode")
NETWORK = (
    *("channels", "blocks", "patch", "prediction", "class_conditioning", "dropout"),
    "standardisation",
)
"""The settings that the network's weights belong to."""


@dataclass(frozen=True)
class ClassifierSettings:
    """JSON-able, and stored with the model.

    Attributes:
        classes: Names, in the order of the labels.
        image_size: Side S of the images in pixels.
        sde: Name in `sde.SDES`.
        sde_parameters: For `sde.make_sde`. The default shifts the log-SNR by 5, to where lesions of
            the phantom, low in contrast, are told apart.
        channels: See `ScoreNetwork`, as for the six that follow.
        blocks: Residual blocks per level and direction.
        patch: Side of the square of pixels that the stem folds.
        prediction: "eps", "v" or "x0".
        class_conditioning: "all", "decoder" or "head".
        dropout: In the network's blocks.
        standardisation: "image" or "dataset".
        log_snr_min: Lowest log-SNR trained on, for standardised images.
        log_snr_max: Highest log-SNR trained on.
        weighting: See `DenoisingScoreMatching`, as for the four that follow.
        log_snr_sampling: "uniform", "stratified" or "importance".
        hybrid_weight: Weight of the class cross-entropy.
        label_smoothing: In the class cross-entropy.
        label_dropout: Share of labels replaced by the null class.
        evaluations: Network evaluations per image, over all classes, that a prediction spends.
        likelihood: "elbo", by the evaluation plan, or "ode": the probability flow over all levels
            trained on, with the three settings that follow.
        ode_solver: "rk4", "heun" or "dopri5", see `probability_flow.OdeSettings`.
        ode_steps: Of the solvers with fixed steps.
        ode_probes: Hutchinson probes, shared by images and classes.

    Raises:
        ValueError: A setting is out of range; the message names it. `ScoreNetwork`,
            `DenoisingScoreMatching` and `make_sde` check their own.
    """

    classes: Sequence[str] = ("benign", "malignant")
    image_size: int = 32
    sde: str = "cosine"
    sde_parameters: Mapping[str, float | Sequence[float]] = field(
        default_factory=lambda: {"log_snr_shift": 5.0}
    )
    channels: Sequence[int] = (32, 64, 96, 128)
    blocks: int = 1
    patch: int = 2
    prediction: str = "v"
    class_conditioning: str = "all"
    dropout: float = 0.0
    standardisation: str = "dataset"
    log_snr_min: float = -4.0
    log_snr_max: float = 10.0
    weighting: str = "simple"
    log_snr_sampling: str = "stratified"
    hybrid_weight: float = 0.01
    label_smoothing: float = 0.1
    label_dropout: float = 0.0
    evaluations: int = 32
    likelihood: str = "elbo"
    ode_solver: str = "rk4"
    ode_steps: int = 12
    ode_probes: int = 2

    def __post_init__(self) -> None:
        # As they come back from JSON, so that a loaded model's settings equal the saved one's.
        for name in ("classes", "channels"):
            object.__setattr__(self, name, list(getattr(self, name)))
        least = 2 * len(self.classes)
        if len(self.classes) < 2:
            raise ValueError(f"classes must be at least two, not {len(self.classes)}")
        if self.evaluations < least:
            raise ValueError(
                f"evaluations must be at least two per class ({least}), not {self.evaluations}"
            )
        if self.likelihood not in LIKELIHOODS:
            raise ValueError(
                f"likelihood must be one of {', '.join(LIKELIHOODS)}, not {self.likelihood!r}"
            )
        self.flow(seed=0)

    @property
    def draws(self) -> int:
        """Draws of noise per image that `evaluations` allow."""
        return self.evaluations // len(self.classes)

    def flow(self, seed: int) -> OdeSettings:
        """How the probability flow is integrated; the seed is that of the probes."""
        return OdeSettings(
            solver=self.ode_solver,
            steps=self.ode_steps,
            probes=self.ode_probes,
            log_snr_min=self.log_snr_min,
            log_snr_max=self.log_snr_max,
            seed=seed,
        )

    def network_unlike(self, other: "ClassifierSettings") -> list[str]:
        """What `other` gives the network otherwise, as `name=value`; dropout may differ."""
        return [
            f"{name}={_plain(getattr(other, name))}"
            for name in NETWORK
            if name != "dropout" and getattr(other, name) != getattr(self, name)
        ]


def _plain(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
