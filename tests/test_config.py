"""A wrong parameter gets one clear sentence; a right one gets where it should."""

from pathlib import Path
from typing import Annotated, get_args

import pytest
import yaml
from pydantic import TypeAdapter

from sgc_experiments.choices import choices
from sgc_experiments.classifier_settings import ClassifierSettings
from sgc_experiments.command_line import parse
from sgc_experiments.config import (
    BaselineConfig,
    EvaluateConfig,
    FewshotConfig,
    TrainConfig,
    TuneConfig,
    resolve_defaults,
)
from sgc_experiments.config.data import _BESIDE_THE_NUMBERS
from sgc_experiments.config.tune import _BESIDE_STUDY
from sgc_experiments.data import CLASSES
from sgc_experiments.errors import UserError
from sgc_experiments.experiments import CONFIGS
from sgc_experiments.experiments.fitting import _BESIDE_TRAINING
from sgc_experiments.experiments.models import build_classifier, training_settings
from sgc_experiments.experiments.train import run_name
from sgc_experiments.training_settings import TrainingSettings


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--beta_max", "-1"], ["beta_max=-1", "greater than 0", "default 20.0"]),
        (["--image_size", "abc"], ["image_size=abc", "integer", "auto"]),
        (["--image_size", "50"], ["image_size=50", "multiple of 8"]),
        (["--datset", "x"], ["'datset'", "did you mean dataset?"]),
        (["--model", "majority", "--unlabelled", "rest"], ["unlabelled", "model=majority"]),
        (["--weights", "weights.safetensors"], ["weights", "model=sgc"]),
        (["--dataset", "mnist"], ["dataset=mnist", "phantom", "vindr_mammo"]),
        (["--beta_min", "30"], ["beta_max must be larger than beta_min"]),
        (["--log_snr_knots", "3,4"], ["log_snr_knots must be two or more falling numbers"]),
        (["--log_snr_knots", "3"], ["log_snr_knots must be two or more falling numbers"]),
        (["--log_snr_shift", "21"], ["log_snr_shift=21", "less than or equal to 20"]),
        (["--budget", "5min"], ["budget=5min is not valid: budget is how long to train: steps:N"]),
        (["--seed"], ["--seed", "expected one argument"]),
        (["stray"], ["'stray'", "belongs to no parameter"]),
        (["--test_fraction", "0.8", "--validation_fraction", "0.15"], ["validation_fraction"]),
    ],
)
def test_a_mistake_is_named_in_one_sentence(arguments, words):
    with pytest.raises(UserError) as caught:
        parse(TrainConfig, arguments)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert message[-1] in ".?"


def test_a_baseline_takes_of_the_parameters_what_is_for_it():
    arguments = ["--models", "sgc,resnet18", "--unlabelled", "rest", "--pretrained", "true"]
    both = parse(BaselineConfig, arguments)
    assert (both.of("sgc").unlabelled, both.of("sgc").pretrained) == ("rest", False)
    assert (both.of("resnet18").unlabelled, both.of("resnet18").pretrained) == (None, True)


def test_all_mistakes_are_listed_at_once():
    with pytest.raises(UserError) as caught:
        parse(TrainConfig, ["--seed", "-3", "--sde", "vpp"])
    assert len(str(caught.value).splitlines()) == 2


def test_the_command_line_wins_over_the_file_and_the_file_over_the_environment(
    tmp_path, monkeypatch
):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"beta_max": 12.0, "seed": 5}), encoding="utf-8")
    monkeypatch.setenv("SGC_SEED", "4")
    monkeypatch.setenv("SGC_BATCH_SIZE", "8")
    config = parse(TrainConfig, ["--config", str(file), "--beta_max=15"])
    assert (config.beta_max, config.seed, config.batch_size) == (15.0, 5, 8)
    monkeypatch.setenv("SGC_CONFIG", str(file))
    assert parse(TrainConfig, []).seed == 5


@pytest.mark.parametrize("content", ["- a\n- b\n", "seed: [", "!!python/object:os.system x", ""])
def test_a_file_that_is_no_list_of_parameters_is_refused(tmp_path, content):
    file = tmp_path / "run.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"run\.yaml"):
        parse(TrainConfig, ["--config", str(file)])


def test_a_wrong_name_in_a_file_names_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("beta_mx: 3\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"run\.yaml.*did you mean beta_max"):
        parse(TrainConfig, ["--config", str(file)])


@pytest.mark.parametrize(
    ("dataset", "gpu", "kind", "size"),
    [
        ("phantom", False, "roi", 32),
        ("inbreast", True, "whole", 384),
        ("inbreast", False, "whole", 96),
    ],
)
def test_auto_depends_on_dataset_and_device(dataset, gpu, kind, size):
    config = resolve_defaults(parse(TrainConfig, ["--dataset", dataset]), gpu=gpu)
    assert (config.input, config.image_size) == (kind, size)


@pytest.mark.parametrize(("size", "shift"), [(16, 2.7726), (64, 0.0), (256, -2.7726)])
def test_the_shift_makes_up_for_the_resolution(size, shift):
    arguments = ["--log_snr_shift", "auto", "--image_size", str(size)]
    assert resolve_defaults(
        parse(TrainConfig, arguments), gpu=False
    ).log_snr_shift == pytest.approx(shift, abs=1e-4)
    assert parse(TrainConfig, ["--log_snr_shift=-3"]).log_snr_shift == -3


def test_help_lists_every_parameter_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(TrainConfig, ["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    for name in TrainConfig.model_fields:
        assert f"--{name} " in text


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "sgc-phantom-roi32-seed0"),
        (
            ["--model", "resnet18", "--pretrained", "true"],
            "resnet18-phantom-roi32-seed0 pretrained=True",
        ),
        (
            ["--sde", "ve", "--learning_rate", "1e-3", "--channels", "16,32"],
            "sgc-phantom-roi32-seed0 sde=ve channels=16-32 learning_rate=0.001",
        ),
        (["--workers", "3", "--bootstrap", "100", "--device", "cpu"], "sgc-phantom-roi32-seed0"),
        (
            ["--clahe=true", "--sde=ve", "--blocks=2", "--patch=4", "--dropout=0.1", "--folds=5"],
            "sgc-phantom-roi32-5folds-seed0 clahe=True sde=ve blocks=2 patch=4 +1",
        ),
    ],
)
def test_a_runs_name_says_what_is_not_the_default(arguments, name):
    assert run_name(resolve_defaults(parse(TrainConfig, arguments), gpu=False)) == name


@pytest.mark.parametrize(
    ("config", "name", "text"),
    [
        (TrainConfig, "sde", "vp, cosine, log_snr, sub_vp or ve"),
        (TrainConfig, "image_size", "a whole number from 16 to 1024 in steps of 8 or auto"),
        (TrainConfig, "beta_max", "a number from above 0 to 1000"),
        (TrainConfig, "dropout", "a number from 0 to below 1"),
        (TrainConfig, "channels", "each a whole number from 4 to 2048"),
        (TrainConfig, "unlabelled", "rest or a path"),
        (TrainConfig, "balanced", "true or false"),
        (TrainConfig, "patience", "a whole number from 0"),
        (TrainConfig, "budget", ""),
        (EvaluateConfig, "dataset", "phantom, inbreast, cbis_ddsm, vindr_mammo, table or auto"),
        (FewshotConfig, "targets", "each a number from above 0 to below 1"),
    ],
)
def test_what_may_be_written_comes_from_the_declaration(config, name, text):
    assert choices(config.model_fields[name]) == text


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_every_name_that_may_be_written_is_accepted(config):
    for name, field in config.model_fields.items():
        read = TypeAdapter(Annotated[field.annotation, field]).validate_python
        for written in get_args(field.annotation):
            if isinstance(written, str):
                assert read(written) == written
                assert written in choices(field), name


def test_a_classifier_made_in_python_has_the_defaults_of_the_command_line():
    # Whether to transpose is a matter of the input, which images do not tell.
    config = resolve_defaults(parse(TrainConfig, ["--transpose", "false"]), gpu=False)
    assert build_classifier(config, CLASSES).settings == ClassifierSettings()
    assert training_settings(config) == TrainingSettings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weighting", "sigmoid"),
        ("log_snr_sampling", "importance"),
        ("hybrid_weight", 0.3),
        ("label_smoothing", 0.2),
        ("label_dropout", 0.1),
    ],
)
def test_a_parameter_of_the_objective_reaches_it(name, value):
    config = resolve_defaults(parse(TrainConfig, [f"--{name}", str(value)]), gpu=False)
    classifier = build_classifier(config, CLASSES)
    assert getattr(classifier.settings, name) == value
    assert getattr(classifier.objective, name) == value


def test_what_is_left_out_of_a_key_exists_and_changes_nothing():
    fields = TrainConfig.model_fields
    assert {*_BESIDE_TRAINING, *_BESIDE_THE_NUMBERS} <= set(fields)
    assert set(_BESIDE_STUDY) <= set(TuneConfig.model_fields)
    config = parse(TrainConfig, [])
    elsewhere = {"cache_dir": Path("/elsewhere"), "workers": 3, "processes": 2}
    assert config.model_copy(update=elsewhere).deciding() == config.deciding()
    other = config.model_copy(update={"label_smoothing": 0.2})
    assert other.deciding() != config.deciding()
    assert other.deciding("label_smoothing") == config.deciding("label_smoothing")
