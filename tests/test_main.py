"""The command line: every entry point answers, and a mistake is one sentence."""

import pytest
from mlflow.exceptions import RestException

from sgc_experiments.__main__ import ENTRY_POINTS, main


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_entry_point_lists_its_parameters(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert "--seed" in capsys.readouterr().out


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_entry_point_refuses_an_unknown_parameter(name, capsys):
    assert main([name, "--seeed", "1"]) == 2
    message = capsys.readouterr().err
    assert "'seeed'" in message
    assert "did you mean seed?" in message
    assert "Traceback" not in message


def test_an_unknown_entry_point_is_told_the_known_ones(capsys):
    assert main(["trian"]) == 2
    message = capsys.readouterr().err
    assert "'trian'" in message
    assert all(name in message for name in ENTRY_POINTS)


def test_a_server_that_refuses_before_there_is_a_run_is_told_of_in_one_sentence(
    monkeypatch, capsys
):
    def refuse(arguments):
        raise RestException({"error_code": "PERMISSION_DENIED", "message": "of Ms Example"})

    monkeypatch.setattr("sgc_experiments.experiments.compare.main", refuse)
    assert main(["compare"]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "EDIT permission" in told[0]
    assert "Example" not in told[0]


def test_yardsticks_are_printed_for_a_phantom_that_it_makes(tmp_path, capsys):
    arguments = ["--patients", "40", "--seed", "3", "--cache_dir", str(tmp_path)]
    assert main(["yardsticks", *arguments]) == 0
    assert "latent" in capsys.readouterr().out
