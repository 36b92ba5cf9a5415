"""A fitted model taken from the registry, with the facts that say how to use it."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.data.preprocess import PreprocessSettings
from sgc_experiments.experiments.models import load_classifier
from sgc_experiments.protocol import Classifier
from sgc_experiments.registered_models import download_model


@dataclass(frozen=True)
class FittedModel:
    """A model and what it was fitted on.

    Attributes:
        classifier: ready to predict.
        settings: how images were prepared for it.
        facts: what ``fitting.publish`` stored.
        run_id: of the run that fitted it.
    """

    classifier: Classifier
    settings: PreprocessSettings
    facts: dict[str, Any]
    run_id: str

    @property
    def name(self) -> str:
        """As in ``model=``."""
        return str(self.facts["model"])


def load_fitted(model_uri: str, device: str) -> FittedModel:
    """Load a model by its URI.

    Args:
        model_uri: such as ``models:/sgc-phantom@champion``.
        device: where a generative model runs: "auto", "cpu", "cuda", ….

    Raises:
        UserError: there is no such model, or it is none of this project's.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder, run_id = download_model(model_uri, Path(scratch))
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        classifier = load_classifier(folder)
    if isinstance(classifier, ScoreBasedClassifier):
        classifier.to(device)
    return FittedModel(classifier, PreprocessSettings(**facts["preprocessing"]), facts, run_id)
