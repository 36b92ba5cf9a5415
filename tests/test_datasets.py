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


def test_parameters_of_another_dataset_are_told(monkeypatch, caplog):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: None)
    given = ["--birads3", "drop", "--on_leak", "error", "--phantom_patients", "30"]
    for dataset, idle in (
        ("phantom", {"birads3", "on_leak"}),
        ("cbis_ddsm", {"birads3", "phantom_patients"}),
    ):
        caplog.clear()
        config = parse(TrainConfig, ["--dataset", dataset, *given])
        datasets.load_images(resolve_defaults(config, gpu=False))
        assert {message.split()[0] for message in caplog.messages} == idle
