"""Nothing from outside is run: no pickle, no YAML tag, no parameter."""

import hashlib
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import timm
import torch

from baselines.weights import load_weights
from sgc_experiments.checkpoint import load_checkpoint, save_checkpoint
from sgc_experiments.command_line import parse
from sgc_experiments.config import TrainConfig
from sgc_experiments.errors import UserError, without_paths
from sgc_experiments.experiments.models import load_classifier
from tests.conftest import ROOT


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self):
        return Path.touch, (self.flag,)


@pytest.fixture
def flag(tmp_path):
    """A file that must never come to be; that it can is shown first."""
    path = tmp_path / "flag"
    pickle.loads(pickle.dumps(Hostile(path)))
    path.unlink()
    yield path
    assert not path.exists()


def test_a_pickle_planted_as_checkpoint_is_passed_over(flag, tmp_path):
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, 3, {"weight": torch.ones(2)}, {"step": 3})
    content = pickle.dumps(Hostile(flag))
    digest = hashlib.sha256(content).hexdigest()[:32]
    (folder / f"checkpoint-{9:09d}-{digest}.safetensors").write_bytes(content)
    _, state = load_checkpoint(folder)
    assert state == {"step": 3}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors", ".pkl"])
@pytest.mark.parametrize("write", ["torch", "pickle"])
def test_a_pickle_planted_as_weights_is_refused(flag, tmp_path, suffix, write):
    path = tmp_path / f"weights{suffix}"
    hostile = {"conv1.weight": Hostile(flag)}
    if write == "torch":
        torch.save(hostile, path)
    else:
        path.write_bytes(pickle.dumps(hostile))
    network = timm.create_model("resnet10t")
    with pytest.raises(UserError, match="could not be read"):
        load_weights(path, "resnet10t", {"model_name": "resnet10t"}, untrained=network)


def test_a_pickle_planted_in_a_registered_model_is_not_run(finished, flag, tmp_path):
    """In place of the weights, of the configuration, and beside them under MLflow's usual name."""
    mlflow.set_tracking_uri(finished.tracking_uri)
    version = finished.client.get_model_version_by_alias("sgc-phantom", "champion")
    original = tmp_path / "original"  # not the folder that the copies go to
    original.mkdir()
    downloaded = mlflow.artifacts.download_artifacts(
        artifact_uri=version.source, dst_path=str(original), tracking_uri=finished.tracking_uri
    )
    content = pickle.dumps(Hostile(flag))
    for name in ("model.safetensors", "config.json", "facts.json"):
        model = tmp_path / f"planted-{name}"
        shutil.copytree(downloaded, model)
        (planted,) = (path for path in model.rglob(name) if path.parent.name == "classifier")
        planted.write_bytes(content)
        for place in ("python_model.pkl", "artifacts/python_model.pkl", "model.pth"):
            (model / place).write_bytes(content)
        if name != "facts.json":
            with pytest.raises(UserError):
                load_classifier(planted.parent)
        with pytest.raises(Exception, match=r".") as refusal:
            mlflow.pyfunc.load_model(str(model))
        assert not flag.exists(), refusal


def test_a_yaml_file_makes_no_object(flag, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f'dataset: !!python/object/apply:os.mknod ["{flag}"]\n')
    with pytest.raises(UserError, match="not a YAML file"):
        parse(TrainConfig, ["--config", str(path)])


def test_a_parameter_reaches_no_shell(workspace):
    flag = workspace.folder / "flag"
    done = workspace.project(
        "train",
        dataset=f"phantom; touch {flag}",
        model=f"$(touch {flag})",
        seed=f"`touch {flag}`",
        budget=f"steps:6' ; touch {flag} #",
    )
    assert done.returncode != 0
    assert not flag.exists()
    (run,) = workspace.runs()
    assert run.info.status == "FAILED"
    # The program got every value as it was given.
    for value in (f"phantom; touch {flag}", f"`touch {flag}`", f"steps:6' ; touch {flag} #"):
        assert value in done.stderr
        assert without_paths(value) in run.data.tags["failure_reason"]


def test_bandit_finds_nothing_that_is_not_explained():
    bandit = [sys.executable, "-m", "bandit", "--quiet", "--configfile", "pyproject.toml"]
    code = ["--recursive", "sgc_experiments", "baselines"]
    done = subprocess.run([*bandit, *code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
