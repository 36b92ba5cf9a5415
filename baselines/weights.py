"""Weights to start from: timm's own, downloaded once, or a local file.

Both end as a file that timm adapts: colours are summed to grey, position embeddings resampled, a
last layer for other classes left out. A file that leaves any other layer at random is refused,
since training would hide it. Pickled code is never run.
"""

import logging
import pickle
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from safetensors import SafetensorError
from timm.models import get_pretrained_cfg, load_state_dict
from torch import Tensor, nn

from sgc_experiments.errors import UserError

CONNECT_SECONDS = 6.0
_WEIGHTS_NAME = "model.safetensors"
_READ_ERRORS = (
    AttributeError,
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    SafetensorError,
    pickle.PickleError,
)
_FIT_ERRORS = (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError)


def pretrained_file(name: str) -> Path:
    """The file of timm's pretrained weights of a model, from the hub's cache or downloaded.

    Raises:
        UserError: there are none, or they cannot be downloaded; within seconds without a network.
    """
    configuration = get_pretrained_cfg(name)
    if configuration is None or not configuration.hf_hub_id:
        raise UserError(
            f"timm has no pretrained weights for {name}; pass weights=FILE, or pretrained=false."
        )
    repository = configuration.hf_hub_id
    cached = huggingface_hub.try_to_load_from_cache(repository, _WEIGHTS_NAME)
    if isinstance(cached, str):
        return Path(cached)
    # The hub's client tries again for minutes where there is no network.
    if _answers(huggingface_hub.hf_hub_url(repository, _WEIGHTS_NAME)):
        try:
            # timm names no revision; a safetensors file runs nothing.
            return Path(huggingface_hub.hf_hub_download(repository, _WEIGHTS_NAME))  # nosec B615
        except OSError:
            pass  # told below, as is a network that does not answer
    raise UserError(
        f"The pretrained weights of {name} could not be downloaded; fetch the file "
        f"{repository}/{_WEIGHTS_NAME} elsewhere and pass weights=FILE."
    )


def _answers(url: str) -> bool:
    """Whether a server answers at all within `CONNECT_SECONDS`, name resolution included."""
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=CONNECT_SECONDS):  # nosec B310 - of the hub
                answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except OSError:
            return

    # Looking up a name cannot be timed; a thread can be left behind.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return answered.is_set()


def load_weights(
    path: Path, name: str, arguments: dict[str, Any], *, untrained: nn.Module
) -> nn.Module:
    """Build a network that starts from a file of weights.

    Args:
        path: A safetensors file, or a state dict that `torch.load(weights_only=True)` reads: of
            timm, of torchvision where the layers have the same names, or saved by this project.
        name: The timm model.
        arguments: For `timm.create_model`.
        untrained: The same network with the random weights that the global generator, in its
            present state, gives it.

    Raises:
        UserError: the file cannot be read, or holds the weights of another network.
    """
    state = _read(path)
    configuration = get_pretrained_cfg(name, allow_unregistered=True)
    overlay = _describe(state, configuration)
    # timm logs every layer that does not fit; here one sentence follows.
    logging.getLogger("timm").setLevel(logging.ERROR)
    try:
        network = timm.create_model(
            **arguments, pretrained=True, pretrained_cfg_overlay=overlay | {"state_dict": state}
        )
    except _FIT_ERRORS:
        network = None
    if network is None or _left_random(network, untrained):
        raise UserError(
            f"weights={path.name} does not fit {name}: it holds the weights of another network, "
            "or of another image size that timm cannot adapt."
        )
    return network


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by the names of timm's layers."""
    if not path.is_file():
        raise UserError(f"weights={path} is not a file; give the path of a file of weights.")
    try:
        state = load_state_dict(str(path), weights_only=True)
    except _READ_ERRORS:
        state = None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(
            f"weights={path.name} could not be read; it must be a safetensors file, or a state "
            "dict of tensors alone saved by torch.save."
        )
    own = "backbone."
    if any(key.startswith(own) for key in state):
        return {k.removeprefix(own): v for k, v in state.items() if k.startswith(own)}
    return state


def _describe(state: dict[str, Tensor], configuration: Any) -> dict[str, Any]:
    """What timm must know of a state dict in order to adapt it: its channels and classes."""

    def first(names: str | tuple[str, ...] | None) -> Tensor | None:
        name = names if isinstance(names, str) or not names else names[0]
        return state.get(f"{name}.weight")

    stem, head = first(configuration.first_conv), first(configuration.classifier)
    channels = stem.shape[1] if stem is not None and stem.dim() == 4 else 3
    return {
        "input_size": (channels, *configuration.input_size[1:]),
        "num_classes": 0 if head is None else len(head),
        "custom_load": False,
        "label_offset": 0,
    }


def _left_random(network: Any, untrained: nn.Module) -> bool:
    """Whether a layer other than the last is as the generator made it."""
    head = network.get_classifier()
    heads = {id(p) for p in head.parameters()} if isinstance(head, nn.Module) else set()
    pairs = zip(network.parameters(), untrained.parameters(), strict=True)
    return any(
        mine.dim() > 1 and id(mine) not in heads and bool(mine.std() > 0) and torch.equal(mine, raw)
        for mine, raw in pairs
    )
