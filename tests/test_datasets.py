"""From a configuration to images: whose values count."""

from sgc_experiments.command_line import parse
from sgc_experiments.config import TrainConfig, resolve_defaults
from sgc_experiments.experiments import datasets


def test_images_that_are_loaded_once_take_nothing_from_the_environment(monkeypatch):
    monkeypatch.setenv("SGC_VALIDATION_FRACTION", "0.75")  # too much for the usual test_fraction
    config = resolve_defaults(
        parse(TrainConfig, ["--test_fraction", "0.1", "--image_size", "48", "--clahe", "true"]),
        gpu=False,
    )
    asked = []
    monkeypatch.setattr(datasets, "load_images", asked.append)
    datasets._load_once.cache_clear()
    for seed in (1, 2):
        datasets.load_images_once(config.model_copy(update={"seed": seed, "n_patients": 30}))
    datasets._load_once.cache_clear()
    (wanted,) = asked  # once: neither seed nor split matter to the images
    assert (wanted.image_size, wanted.clahe, wanted.input) == (48, True, config.input)
    assert wanted.cache_dir == config.cache_dir
