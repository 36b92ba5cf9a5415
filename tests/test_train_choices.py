"""Every choice that `train` offers is trained and classified with, from its command line on."""

from itertools import combinations, product
from typing import get_args

import numpy as np
import pytest
import torch

from sgc_experiments.command_line import parse
from sgc_experiments.config import TrainConfig, resolve_defaults
from sgc_experiments.experiments.models import build_classifier, load_classifier, training_settings
from sgc_experiments.noise_levels import SAMPLINGS
from sgc_experiments.objective import WEIGHTINGS
from sgc_experiments.score_network import CLASS_CONDITIONING, PREDICTIONS, STANDARDISATIONS
from sgc_experiments.sde import SDES
from tests.test_classifier import blobs

CORE = {
    "sde": SDES,
    "prediction": PREDICTIONS,
    "weighting": WEIGHTINGS,
    "log_snr_sampling": SAMPLINGS,
    "class_conditioning": CLASS_CONDITIONING,
    "standardisation": STANDARDISATIONS,
}
OFFERED = {name: get_args(TrainConfig.model_fields[name].annotation) for name in CORE}
TINY = {
    "image_size": "16", "channels": "8", "log_snr_min": "-2", "log_snr_max": "6",
    "log_snr_knots": "9,2,1,-5", "log_snr_shift": "auto", "budget": "steps:16",
    "validate_every": "8", "batch_size": "8", "precision": "fp32",
}  # fmt: skip


def covering(offered):
    """Combinations in which every two values of two parameters meet, few of them."""
    every = list(product(*offered.values()))

    def pairs(values):
        return set(combinations(enumerate(values), 2))

    missing, chosen = set().union(*map(pairs, every)), []
    while missing:
        chosen.append(max(every, key=lambda values: len(pairs(values) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


@pytest.mark.parametrize("name", CORE)
def test_train_offers_all_that_the_core_can_do(name):
    assert set(OFFERED[name]) == set(CORE[name])


def train_and_classify(values, folder):
    arguments = TINY | dict(zip(OFFERED, values, strict=True))
    arguments = [part for k, v in arguments.items() for part in (f"--{k}", v)]
    config = resolve_defaults(parse(TrainConfig, arguments), gpu=False)
    model = build_classifier(config, ("benign", "malignant"))
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    train_set, validation_set = blobs(24, 0, 16), blobs(8, 1, 16)
    untrained = build_classifier(config, ("benign", "malignant"))
    untrained._standardise_to(train_set.images)
    at_first = untrained.objective.validate(untrained.network.eval(), *validation_set)
    result = model.fit(train_set, validation_set, settings=training_settings(config))
    assert result.history[-1]["validation_loss"] < at_first["validation_loss"]
    assert any(not torch.equal(v, before[k]) for k, v in model.network.state_dict().items())
    images = blobs(6, 2, 16).images
    log_odds = model.predict_log_odds(images).log_odds
    posterior = model.posterior(log_odds)
    assert np.isfinite(posterior).all()
    assert posterior.sum(1) == pytest.approx(1)
    assert np.ptp(log_odds[:, 1]) > 0
    model.save(folder)
    again = load_classifier(folder)
    assert again.settings == model.settings
    assert np.array_equal(again.predict_log_odds(images).log_odds, log_odds)


@pytest.mark.parametrize("values", covering(OFFERED), ids="-".join)
def test_every_pair_of_choices_trains_and_classifies(values, tmp_path):
    train_and_classify(values, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("values", list(product(*OFFERED.values())), ids="-".join)
def test_every_combination_trains_and_classifies(values, tmp_path):
    train_and_classify(values, tmp_path)
