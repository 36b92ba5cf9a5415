"""Starting from another model's weights, whose classes may be others."""

import numpy as np
import pytest
import torch

from sgc_experiments.batches import ImageSet
from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.errors import UserError
from sgc_experiments.training import TrainingSettings

TINY = {"image_size": 8, "channels": [8], "blocks": 1, "log_snr_min": -2.0, "log_snr_max": 6.0}


def blobs(count, seed=0, size=8):
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = generator.integers(28000, 32000, (count, size, size))
    images[labels == 1, :, : size // 2] += 15000
    return ImageSet(images.astype(np.uint16), labels)


@pytest.fixture(scope="module")
def source():
    model = ScoreBasedClassifier(("benign", "malignant", "normal"), **TINY, evaluations=18)
    images, labels = blobs(48)
    labels = np.where(np.arange(48) % 6 < 2, 2, labels)
    settings = TrainingSettings(budget="steps:150", batch_size=16, progress=False)
    model.fit(ImageSet(images, labels), ImageSet(images, labels), settings=settings)
    return model


def test_layers_are_taken_over_and_embeddings_go_by_name(source):
    target = ScoreBasedClassifier(("malignant", "benign", "new"), **TINY | {"image_size": 16})
    target.start_from(source)
    settings = TrainingSettings(
        budget="steps:1", batch_size=4, learning_rate=1e-12, ema_decay=0.0, progress=False
    )
    images = ImageSet(blobs(12, size=16).images, np.arange(12) % 3)
    target.fit(images, images, settings=settings)
    theirs, ours = source.network.state_dict(), target.network.state_dict()
    for name in set(ours) - {"class_embedding.weight", "pixel_mean", "pixel_std"}:
        torch.testing.assert_close(ours[name], theirs[name])
    rows, old = ours["class_embedding.weight"], theirs["class_embedding.weight"]
    expected = torch.stack([old[1], old[0], old[:3].mean(0), old[3]])
    torch.testing.assert_close(rows, expected)


def test_a_started_model_is_ahead_after_a_few_steps(source):
    losses = []
    settings = TrainingSettings(
        budget="steps:10", validate_every=5, batch_size=8, progress=False, ema_decay=0.5
    )
    for start in (True, False):
        model = ScoreBasedClassifier(**TINY)
        if start:
            model.start_from(source)
        losses.append(model.fit(blobs(16, 1), blobs(16, 2), settings=settings).best_value)
    assert losses[0] < losses[1] - 0.02


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"channels": [16]}, "channels=8"),
        ({"prediction": "eps"}, "prediction=v"),
        ({"patch": 1}, "patch=2"),
        ({"standardisation": "image"}, "standardisation=dataset"),
    ],
)
def test_another_network_is_refused_and_the_difference_named(source, arguments, named):
    with pytest.raises(UserError, match=named):
        ScoreBasedClassifier(**TINY | arguments).start_from(source)
