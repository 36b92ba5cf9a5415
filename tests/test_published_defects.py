"""What is wrong in the code published with arXiv:2502.17727, each held against this package.

1. The likelihood takes the class and never uses it.
2. Batch normalisation: an image's score depends on its batch.
3. The grey image is repeated over three channels: a degenerate density.
4. "bits/dim" are nats, without dequantisation and without the change of variables.
5. No moving average of the weights, and no validation images.

(The sixth, accuracy as the headline, is a matter of evaluation.)
"""

import numpy as np
import pytest
import torch

from sgc_experiments.batches import ImageSet
from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.errors import UserError
from sgc_experiments.likelihood import bits_per_dim, elbo, make_draws
from sgc_experiments.noise_levels import LogSNRDensity
from sgc_experiments.probability_flow import OdeSettings, probability_flow_ode
from sgc_experiments.score_network import ScoreNetwork
from sgc_experiments.sde import make_sde
from sgc_experiments.training import TrainingSettings
from tests.exact_classes import equal_covariances, unequal_covariances


def test_defect_1_the_likelihood_depends_on_the_class():
    """Class means are told apart by both estimators, with the sign of the exact answer."""
    truth = equal_covariances(6)
    x = truth.sample(torch.tensor([0, 1]), torch.Generator().manual_seed(0))
    exact = truth.log_prob(x)
    exact = (exact[:, 1] - exact[:, 0]).tolist()
    assert exact[0] < -1
    assert exact[1] > 1
    draws = make_draws((6,), LogSNRDensity.uniform(-8, 10), 200, antithetic=True)
    by_elbo = elbo(truth, x, draws).log_odds[:, 1].tolist()
    settings = OdeSettings(solver="heun", steps=60, log_snr_max=14)
    by_flow = probability_flow_ode(truth, make_sde("vp"), x, settings=settings).log_odds[:, 1]
    assert by_elbo == pytest.approx(exact, rel=0.1)
    assert by_flow.tolist() == pytest.approx(exact, rel=0.1)


def test_defect_2_an_images_score_does_not_depend_on_its_batch():
    """In evaluation mode and in training mode, in which the published code evaluates."""
    torch.manual_seed(0)
    network = ScoreNetwork(2, channels=(8, 16), blocks=1)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    assert not any("BatchNorm" in type(module).__name__ for module in network.modules())
    x = torch.randn(6, 1, 16, 16)
    x[1:] *= 30  # strange company
    draws = make_draws((1, 16, 16), LogSNRDensity.uniform(-4, 8), 8)
    for training in (True, False):
        network.train(training)
        together, alone = (elbo(network, part, draws).log_odds[0] for part in (x, x[:1]))
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_defect_3_the_density_has_one_channel():
    model = ScoreBasedClassifier(image_size=16, channels=[8], blocks=1)
    assert model.network.stem.in_channels == model.network.patch**2
    with torch.no_grad():
        eps = model.network(torch.zeros(1, 1, 16, 16), torch.zeros(1), torch.tensor([0]))
    assert eps.shape == (1, 1, 16, 16)
    with pytest.raises(UserError, match="uint16"):
        model.predict_log_odds(np.zeros((1, 3, 16, 16), np.uint16))


def test_defect_4_bits_per_dim_are_bits_of_the_grey_values():
    """Independent Gaussian pixels, rounded to 64 grey levels: their entropy in bits is known.

    The estimate goes the whole way: dequantisation, scaling, ODE, change of variables.
    """
    levels, width = 64, 2 / 64
    std = 0.25
    edges = torch.arange(levels + 1, dtype=torch.float64) * width - 1
    cells = torch.distributions.Normal(0.0, std).cdf(edges).diff()
    cells = cells / cells.sum()
    entropy = -float((cells * cells.log2()).sum())

    generator = torch.Generator().manual_seed(0)
    grey = torch.multinomial(cells, 1500, replacement=True, generator=generator)
    noise = torch.rand(1500, generator=generator, dtype=torch.float64)
    dequantised = (grey + noise) * width - 1
    # The density of one pixel in standardised coordinates, one pixel per "image".
    one = torch.ones(1, 1, dtype=torch.float64)
    truth = unequal_covariances(1).gaussians([one[0] * 0, one[0]], [one, one])
    x = (dequantised / std)[:, None]
    settings = OdeSettings(divergence="exact", solver="heun", steps=60)
    sde = make_sde("cosine", log_snr_min=-16.0)
    result = probability_flow_ode(truth, sde, x, settings=settings, batch_size=8000)
    bits = float(bits_per_dim(result.log_likelihood[:, 0], 1, width / std).mean())
    sampling_error = float(bits_per_dim(result.log_likelihood[:, 0], 1, width / std).std()) / 38
    assert bits == pytest.approx(entropy, abs=3 * sampling_error + 0.01)
    nats = -float(result.log_likelihood[:, 0].mean())
    assert abs(nats - entropy) > 1


def test_defect_5_validation_decides_and_the_average_is_kept():
    """The weights that are kept are the average's at the best validation, not the last ones."""
    generator = np.random.default_rng(0)
    labels = np.arange(16) % 2
    images = generator.integers(0, 65536, (16, 8, 8)).astype(np.uint16)
    # Without the cross-entropy, whose temperature goes on changing after the best validation.
    model = ScoreBasedClassifier(image_size=8, channels=[8], blocks=1, hybrid_weight=0.0)
    settings = TrainingSettings(
        budget="steps:40",
        validate_every=10,
        batch_size=8,
        progress=False,
        ema_decay=0.9,
        precision="fp32",
    )
    result = model.fit(ImageSet(images, labels), ImageSet(images, labels), settings=settings)
    values = {row["step"]: row[result.monitor] for row in result.history}
    assert list(values) == [10, 20, 30, 40]
    assert result.best_value == min(values.values()) == values[result.best_step]
    again = model.objective.validate(model.network, images, labels)
    assert again[result.monitor] == pytest.approx(result.best_value, rel=1e-6)
