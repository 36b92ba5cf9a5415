"""A log gets few lines, each whole; nothing at all for what is done at once."""

from sgc_experiments import progress
from sgc_experiments.progress import progress_bar


def test_a_log_gets_whole_lines_with_what_remains(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    with progress_bar(total=4, title="training", unit="step") as bar:
        for _ in range(4):
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert any("training:  50 %, 2 of 4" in line and "to go" in line for line in lines)
    assert all("\r" not in line.strip("\r") for line in lines)


def test_short_work_leaves_a_log_alone(capsys):
    with progress_bar(total=4, title="training", unit="step") as bar:
        bar.update(4)
    assert capsys.readouterr().err == ""


def test_progress_can_be_kept_quiet(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    with progress_bar(total=1, title="training", unit="step", shown=False) as bar:
        bar.update()
    assert capsys.readouterr().err == ""
