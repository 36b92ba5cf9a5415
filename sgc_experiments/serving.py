"""The registered model as its users call it: a pyfunc model from code.

``mlflow.pyfunc.load_model("models:/sgc-phantom@champion").predict(images)`` takes prepared
images, (N, S, S) float32 in [0, 1], or a table of files (see ``serving_input.py``), which are
decoded in a limited process and prepared as in training. It returns one row per image: the
calibrated probability of every class, log-odds with their standard error, whether the image is out
of distribution and whether the answer had better not be used; on request, the map of the evidence.

``mlflow models serve`` answers the same over HTTP. A mistake of the caller is a 400 with one
sentence; the server goes on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.environment_variables import _MLFLOW_IS_IN_SERVING_ENVIRONMENT
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel

from sgc_experiments.data.decode_pool import IsolatedTask
from sgc_experiments.data.prepare import BytesTask, prepare_bytes
from sgc_experiments.data.preprocess import PreprocessSettings
from sgc_experiments.data.rejection import RejectedFile
from sgc_experiments.errors import UserError
from sgc_experiments.experiments.evidence_picture import evidence_pictures
from sgc_experiments.experiments.models import load_classifier
from sgc_experiments.experiments.scoring import answer
from sgc_experiments.serving_input import MOST_ARRAYS, File, read_arrays, read_files

DECODE_SECONDS = 20.0
MOST_EVALUATIONS = 4096
MOST_EVALUATIONS_OF_A_REQUEST = 32768  # about a minute on two cores at 48 pixels


class BadRequest(MlflowException):
    """A caller's mistake, which the scoring server answers with 400."""

    def __init__(self, sentence: str) -> None:
        self._sentence = sentence
        super().__init__(sentence, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        """The sentence, and nothing else."""
        return self._sentence

    @message.setter
    def message(self, text: str) -> None:
        """Keep the sentence: the server would put the request, so the image, in front of it."""


class ImageClassifier(PythonModel):
    """Loads a saved classifier and answers with probabilities."""

    def load_context(self, context: Any) -> None:
        """Load the weights and the class names from the model's artifacts."""
        folder = Path(context.artifacts["classifier"])
        self.classifier = load_classifier(folder)
        self.facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        self.settings = PreprocessSettings(**self.facts["preprocessing"])
        self.decode = IsolatedTask(prepare_bytes, timeout=DECODE_SECONDS)

    def predict(
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Classify prepared images or files.

        Args:
            context: not used.
            model_input: an array (N, S, S) of prepared images, or a table with a column ``image``
                (MLflow would check the input itself if the annotation said so).
            params: ``prevalence`` (of the second of two classes, or one share per class),
                ``evaluations`` (of the network per image) and ``map``, as in the signature.

        Raises:
            BadRequest: the input is neither, or a file was rejected.
        """
        try:
            return self._answer(model_input, params or {})
        except UserError as error:
            raise BadRequest(str(error)) from None

    def _answer(self, model_input: Any, params: dict[str, Any]) -> pd.DataFrame:
        prior, evaluations = self._prior(params), self._evaluations(params)
        files = read_files(model_input)
        if files is None:
            images = read_arrays(model_input, self.settings.image_size)
            if len(images) > MOST_ARRAYS and _MLFLOW_IS_IN_SERVING_ENVIRONMENT.get():
                raise UserError(f"A request holds at most {MOST_ARRAYS} images.")
        else:
            images = np.stack([self._prepare(n, file) for n, file in enumerate(files, start=1)])
        if len(images) * (evaluations or 0) > MOST_EVALUATIONS_OF_A_REQUEST:
            raise UserError(
                f"A request spends at most {MOST_EVALUATIONS_OF_A_REQUEST} evaluations on all of "
                "its images: send fewer images, or ask for fewer evaluations."
            )
        table = answer(self.classifier, images, prior=prior, evaluations=evaluations)
        if params.get("map"):
            table["map"] = evidence_pictures(self.classifier, images, evaluations=evaluations)
        unknown = table.columns[table.isna().any()]
        return table.astype(dict.fromkeys(unknown, object)).where(table.notna(), None)

    def _prepare(self, number: int, file: File) -> np.ndarray:
        if self.settings.input == "roi" and file.box is None:
            raise UserError(
                f"Image {number} has no box, and this model judges lesion crops: give x0, y0, x1, "
                "y1 in pixels, or the corners of the whole image if it is a crop already."
            )
        box = file.box if self.settings.input == "roi" else None
        prepared = self.decode(BytesTask(file.data, box, self.settings))
        if isinstance(prepared, RejectedFile):
            raise UserError(f"Image {number} cannot be used: {prepared}.")
        return prepared.pixels

    def _prior(self, params: dict[str, Any]) -> list[float] | None:
        given = params.get("prevalence")
        if given is None:
            return None
        shares = [float(share) for share in np.atleast_1d(given)]
        classes = self.classifier.classes
        if len(classes) == 2 and len(shares) == 1:
            shares = [1 - shares[0], shares[0]]
        if len(shares) != len(classes) or not all(0 < share < 1 for share in shares):
            raise UserError(
                f"prevalence is a share between 0 and 1 for each of {', '.join(classes)}"
                + (f", or that of {classes[1]} alone." if len(classes) == 2 else ".")
            )
        return [share / sum(shares) for share in shares]

    def _evaluations(self, params: dict[str, Any]) -> int | None:
        given = int(params.get("evaluations") or 0)
        fewest = len(self.classifier.classes)
        if given and not fewest <= given <= MOST_EVALUATIONS:
            raise UserError(f"evaluations is 0 (as in training) or {fewest} to {MOST_EVALUATIONS}.")
        return given or None


mlflow.models.set_model(ImageClassifier())
