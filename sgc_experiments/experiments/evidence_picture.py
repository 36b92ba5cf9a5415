"""The map of the evidence over an image, as a small PNG that travels in an answer."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.errors import UserError
from sgc_experiments.protocol import Classifier

# Orange and blue are told apart by every kind of colour vision.
_FOR, _AGAINST = np.array([230.0, 97.0, 1.0]), np.array([33.0, 102.0, 172.0])
_STRONGEST = 0.85  # of the colour where the evidence is strongest; the image shows through


def evidence_pictures(
    classifier: Classifier, images: np.ndarray, *, evaluations: int | None = None
) -> list[str]:
    """Draw where each image holds its evidence.

    Args:
        classifier: a generative classifier.
        images: (N, S, S) uint16.
        evaluations: of the network per image; the same as for the log-odds, of which the map is the
            sum's parts.

    Returns:
        N PNG files of S × S pixels in base64: orange speaks for the second class of two (for the
        most probable one of more), blue against it (for the runner-up); each map is scaled to its
        own strongest pixel.

    Raises:
        UserError: the model is not generative.
    """
    if not isinstance(classifier, ScoreBasedClassifier):
        raise UserError("This model draws no map; only the generative classifier (sgc) does.")
    targets = np.tile([1, 0], (len(images), 1))
    if len(classifier.classes) > 2:
        log_odds = classifier.predict_log_odds(images, evaluations=evaluations).log_odds
        targets = np.argsort(-classifier.posterior(log_odds), axis=1)[:, :2]
    return [
        _picture(
            image,
            classifier.explain(
                image[None], target=int(target), reference=int(reference), evaluations=evaluations
            )[0],
        )
        for image, (target, reference) in zip(images, targets, strict=True)
    ]


def _picture(image: np.ndarray, evidence: np.ndarray) -> str:
    grey = np.repeat(image[..., None] / 65535 * 255, 3, axis=-1)
    strength = np.abs(evidence)[..., None] / max(float(np.abs(evidence).max()), 1e-12)
    colour = np.where(evidence[..., None] > 0, _FOR, _AGAINST)
    blended = grey + _STRONGEST * strength * (colour - grey)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(blended).astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
