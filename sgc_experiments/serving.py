"""The registered model as its users call it: a pyfunc model from code.

``mlflow.pyfunc.load_model("models:/sgc-phantom@champion").predict(images)`` takes prepared
images, (N, S, S) float32 in [0, 1], and returns one row per image: the calibrated probability of
every class and, for two classes, the log-odds with their standard error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd

from sgc_experiments.errors import UserError
from sgc_experiments.experiments.models import load_classifier
from sgc_experiments.experiments.scoring import answer


class ImageClassifier(mlflow.pyfunc.PythonModel):
    """Loads a saved classifier and answers with probabilities."""

    def load_context(self, context: Any) -> None:
        """Load the weights and the class names from the model's artifacts."""
        folder = Path(context.artifacts["classifier"])
        self.classifier = load_classifier(folder)
        self.facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))

    def predict(
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Classify prepared images, (N, S, S) float32 in [0, 1].

        Raises:
            UserError: the array is not a stack of images of the size that the model was fitted on.
        """
        images = np.asarray(model_input)
        size = self.facts["image_size"]
        if images.ndim != 3 or images.shape[1:] != (size, size):
            raise UserError(
                f"The model takes images of shape (N, {size}, {size}), prepared as in training, "
                f"and got {images.shape}."
            )
        if not np.isfinite(images).all() or images.min(initial=0) < 0 or images.max(initial=0) > 1:
            raise UserError("The model takes images with values from 0 (background) to 1.")
        return answer(self.classifier, np.rint(images * 65535).astype(np.uint16))


mlflow.models.set_model(ImageClassifier())
