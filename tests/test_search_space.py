"""The search space: declared within the bounds of its configuration, changed by name."""

import pytest

from sgc_experiments.command_line import parse
from sgc_experiments.config import TrainConfig, TuneConfig, resolve_tuning
from sgc_experiments.config.search_space import (
    SEARCH_SPACE,
    Choice,
    Range,
    choose,
    read_value,
    search_space,
)
from sgc_experiments.errors import UserError

FIELDS = TrainConfig.model_fields


def tuning(*arguments):
    return resolve_tuning(parse(TuneConfig, arguments), gpu=False)


def ends(name, dimension):
    return dimension.labels if isinstance(dimension, Choice) else (dimension.low, dimension.high)


@pytest.mark.parametrize("name", SEARCH_SPACE)
def test_the_declared_space_lies_within_the_bounds_of_the_configuration(name):
    for end in ends(name, SEARCH_SPACE[name]):
        read_value(name, str(end), FIELDS)


def test_the_defaults_are_a_point_of_the_declared_space_and_lead_back_to_themselves():
    config = tuning()
    assert config.with_point(config.start()) == config.defaults()
    for name, value in config.start().items():
        dimension = config.space()[name]
        if isinstance(dimension, Range):
            assert dimension.low <= value <= dimension.high
        else:
            assert value in dimension.labels


def names_of(**fixed):
    """The parameters of a trial in which some are fixed and of the rest the first is picked."""

    def pick(name, dimension):
        return fixed.get(name) or ends(name, dimension)[0]

    return set(choose(SEARCH_SPACE, pick))


def test_a_parameter_of_an_sde_is_there_only_with_that_sde():
    of_sdes = {"sde", "beta_min", "beta_max", "sigma_max", "log_snr_shift"}
    assert not names_of(weighting="elbo", sde="ve") & of_sdes
    for sde, own in {
        "vp": {"beta_min", "beta_max"},
        "sub_vp": {"beta_min", "beta_max"},
        "ve": {"sigma_max"},
        "cosine": {"log_snr_shift"},
    }.items():
        assert names_of(weighting="simple", sde=sde) & of_sdes == {"sde", *own}


def test_search_narrows_widens_fixes_and_adds():
    space = search_space(
        "beta_max=5:100,learning_rate=0.001:0.01:log,channels=16-32|32-64-128,"
        "ema_decay=0.990,batch_size=16:64,dropout=0:0.3",
        FIELDS,
    )
    assert space["beta_max"] == Range(5, 100, when=SEARCH_SPACE["beta_max"].when)
    assert space["learning_rate"] == Range(0.001, 0.01, log=True)
    assert space["channels"] == Choice(("16-32", "32-64-128"))
    assert space["ema_decay"] == Choice(("0.99",))
    assert space["batch_size"] == Range(16, 64, whole=True)
    assert space["dropout"] == Range(0, 0.3)
    assert set(space) == {*SEARCH_SPACE, "batch_size", "dropout"}


def test_what_is_fixed_holds_where_no_condition_asks_for_it_too():
    config = tuning("--search", "sde=ve,weighting=elbo,channels=16-32")
    of_start = config.with_point(config.start())
    assert (of_start.sde, of_start.weighting, of_start.channels) == ("ve", "elbo", (16, 32))


def test_a_start_outside_the_space_is_moved_to_its_nearest_point():
    start = tuning("--search", "log_snr_max=12:14,evaluations=8|64").start()
    assert start["log_snr_max"] == 12
    assert start["evaluations"] == "8"


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ("beta_max=5:4000", ["beta_max=4000", "less than or equal to 1000"]),
        ("learning_rate=0:0.1:log", ["learning_rate=0", "greater than 0"]),
        ("log_snr_min=-40:-4", ["log_snr_min=-40", "-30"]),
        ("channels=2-4|32-64", ["channels=2-4", "4"]),
        ("sde=vp|vq", ["sde=vq", "'sub_vp'"]),
        ("bta_max=5:10", ["'bta_max'", "did you mean beta_max?"]),
        ("data_dir=a|b", ["'data_dir'"]),
        ("beta_max=10:5", ["beta_max=10:5", "empty"]),
        ("dropout=0:0.2:log", ["dropout", "above 0"]),
        ("sde=vp:ve", ["sde", "no number"]),
        ("beta_max=5:10:cubic", ["beta_max=5:10:cubic", "low:high:log"]),
        ("beta_max", ["'beta_max'", "name=low:high"]),
        ("ema_decay=0.9,ema_decay=0.99", ["ema_decay", "twice"]),
        ("learning_rate=auto", ["learning_rate=auto", "write a number"]),
        ("sde=cosine,log_snr_shift=auto|4", ["log_snr_shift=auto", "write a number"]),
        ("learning_rate=auto:0.1", ["learning_rate=auto", "write a number"]),
        ("weighting=elbo,beta_max=5:10", ["beta_max", "add sde=vp|sub_vp"]),
        ("weighting=elbo|sigmoid,sde=vp|ve", ["sde", "add weighting=simple|min_snr"]),
    ],
)
def test_a_mistake_in_search_is_told_by_name(search, words):
    with pytest.raises(UserError) as error:
        parse(TuneConfig, ["--search", search])
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--folds", "5"], ["folds"]),
        (["--objective", "both", "--pruner", "median"], ["pruner=median", "objective=auc"]),
        (["--storage", "mysql://x/y"], ["storage"]),
        (["--trials", "0"], ["trials=0"]),
    ],
)
def test_an_impossible_study_is_refused(arguments, words):
    with pytest.raises(UserError) as error:
        parse(TuneConfig, arguments)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_values_that_contradict_each_other_are_told():
    config = tuning("--search", "log_snr_min=-4:20,log_snr_max=6:14")
    with pytest.raises(UserError, match="log_snr_max must be larger than log_snr_min"):
        config.with_point(config.start() | {"log_snr_min": 15.0})


def test_only_what_decides_on_trials_decides_on_the_study():
    same = tuning("--trials", "50", "--storage", "sqlite:///x.db", "--refit_seeds", "1")
    assert same.of_study() == tuning().of_study()
    for changed in (["--search", "beta_max=5:10"], ["--objective", "both"], ["--seed", "1"]):
        assert tuning(*changed).of_study() != tuning().of_study()
