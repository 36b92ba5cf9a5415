"""Weights from a file: adapted where timm can, refused where they do not fit, never unpickled."""

import os
import pickle
import socket
import time

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from baselines import weights
from baselines.networks import build_network
from sgc_experiments.errors import UserError


@pytest.fixture
def colour_network():
    torch.manual_seed(5)
    return timm.create_model("test_resnet", num_classes=7)


def _build(path, name="test_resnet", **arguments):
    defaults = {"image_size": 32, "n_classes": 2, "seed": 0, "small_patches": False}
    return build_network(name, weights=path, **defaults | arguments).backbone


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_colours_are_summed_and_only_the_head_is_new(colour_network, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    source = colour_network.state_dict()
    if suffix == ".pth":
        torch.save({"state_dict": source}, path)
    else:
        save_file(source, path)
    loaded = _build(path).state_dict()
    stem, *_ = loaded
    torch.testing.assert_close(loaded[stem], source[stem].sum(1, keepdim=True))
    different = {k for k in loaded if k != stem and not torch.equal(loaded[k], source[k])}
    assert different == {"fc.weight", "fc.bias"}


def test_a_model_of_this_project_goes_on_with_its_head(tmp_path):
    network = build_network("test_resnet", image_size=32, n_classes=2, seed=1)
    state = {k: v.contiguous() for k, v in network.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    loaded = _build(tmp_path / "model.safetensors").state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in network.backbone.state_dict().items())


def test_position_embeddings_are_resampled_to_the_image(tmp_path):
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "vit.safetensors")
    backbone = _build(tmp_path / "vit.safetensors", "test_vit", image_size=48)
    assert backbone.patch_embed.num_patches == 9
    assert backbone(torch.zeros(1, 1, 48, 48)).shape == (1, 2)


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "test_convnext"])
def test_weights_of_another_network_are_refused(colour_network, tmp_path, name):
    save_file(colour_network.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=rf"other\.safetensors does not fit {name}"):
        _build(tmp_path / "other.safetensors", name)


class _Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["pickle", "text", "empty", "truncated", "list", "folder"])
def test_a_file_that_holds_no_weights_is_refused_and_never_run(colour_network, tmp_path, kind):
    path = tmp_path / ("w.safetensors" if kind == "truncated" else "w.pth")
    if kind == "pickle":
        path.write_bytes(pickle.dumps(_Payload(tmp_path / "run")))
    elif kind == "text":
        path.write_text("weights", encoding="utf-8")
    elif kind == "empty":
        path.touch()
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "folder":
        path.mkdir()
    else:
        save_file(colour_network.state_dict(), path)
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"^weights=.*w\.(pth|safetensors)"):
        _build(path)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def silent_server(monkeypatch):
    """A network whose proxy takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, address)
        yield


@pytest.mark.usefixtures("silent_server")
def test_without_a_network_pretrained_weights_fail_at_once_and_name_the_way_out(monkeypatch):
    monkeypatch.setattr(weights, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    started = time.monotonic()
    with pytest.raises(
        UserError, match=r"resnet18 could not be downloaded.*weights=FILE"
    ) as caught:
        build_network("resnet18", image_size=32, n_classes=2, seed=0, pretrained=True)
    assert time.monotonic() - started < 5
    assert "\n" not in str(caught.value)


def test_a_model_without_pretrained_weights_says_so():
    with pytest.raises(UserError, match=r"no pretrained weights for resnet50_mlp"):
        build_network("resnet50_mlp", image_size=32, n_classes=2, seed=0, pretrained=True)
