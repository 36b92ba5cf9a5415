"""Any timm network as a classifier of grey images of one size.

timm gives the network one input channel and the image's size. What it leaves to its caller is done
here: patches small enough for small images, and one clear sentence for a name that it does not know
or a size that the network cannot take.
"""

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models import get_pretrained_cfg, is_model, resolve_model_input_args
from torch import Tensor, nn

from baselines.weights import load_weights, pretrained_file
from sgc_experiments.errors import UserError

# With fewer patches along a side, attention has next to nothing to attend to.
_PATCHES_PER_SIDE = 8
# What timm's layers raise where an image is too small for them or an argument unknown to them.
_CONSTRUCTION_ERRORS = (AssertionError, RuntimeError, TypeError, ValueError, ZeroDivisionError)


class GreyImageNetwork(nn.Module):
    """A network behind the standardisation of its input.

    Args:
        backbone: Maps (B, 1, S, S) to logits (B, C).

    Attributes:
        pixel_mean: Scalar, of the training images in [−1, 1]; see `standardise_to`.
        pixel_std: Scalar.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(0.0))
        self.register_buffer("pixel_std", torch.tensor(1.0))
        # Depthwise convolutions take less than half the time this way, on a CPU too.
        self.to(memory_format=torch.channels_last)

    def standardise_to(self, images: Tensor) -> None:
        """Make the pixels of images in [−1, 1] have mean 0 and variance 1 inside the network."""
        self.pixel_mean.fill_(images.mean())
        self.pixel_std.fill_(images.std().clamp(min=1e-3))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training computes activations again on the way back, to save memory.

        Raises:
            UserError: the backbone cannot.
        """
        backbone: Any = self.backbone  # torch types what a module has as tensors and modules
        try:
            backbone.set_grad_checkpointing(enable)
        except (AttributeError, AssertionError):
            raise UserError(
                "This model has no gradient checkpointing: use gradient_checkpointing=false, and "
                "accumulate to save memory."
            ) from None

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, 1, S, S) in [−1, 1]."""
        images = (images - self.pixel_mean) / self.pixel_std
        logits: Tensor = self.backbone(images.contiguous(memory_format=torch.channels_last))
        return logits


def check_name(name: str) -> None:
    """Check that timm knows a model, and its pretrained tag (`name.tag`) if there is one.

    Raises:
        UserError: it does not; the nearest names are listed.
    """
    model, _, tag = name.partition(".")
    if not is_model(name):
        close = difflib.get_close_matches(model, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "it must be sgc or a timm model."
        raise UserError(f"There is no model named {name!r}: {hint}")
    try:
        get_pretrained_cfg(name)
    except RuntimeError:
        known = [full.partition(".")[2] for full in timm.list_pretrained(f"{model}.*")]
        raise UserError(
            f"{model} has no pretrained weights named {tag!r}; choose {', '.join(known)}, or leave "
            "the tag out."
        ) from None


def build_network(
    name: str,
    *,
    image_size: int,
    n_classes: int,
    seed: int,
    pretrained: bool = False,
    weights: Path | None = None,
    small_patches: bool = True,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> GreyImageNetwork:
    """Build a network.

    Args:
        name: A timm model, such as "resnet18" or "vit_tiny_patch16_224.augreg_in21k".
        image_size: S, in pixels.
        n_classes: C.
        seed: Of the random weights.
        pretrained: Start from timm's weights of that name, downloaded once.
        weights: Start from this file instead; see `weights.load_weights`.
        small_patches: Cut a small image into at least 8 × 8 patches where the network is a
            vision transformer, whatever its name says; not meant for weights that exist already.
        drop_rate: Dropout before the last layer.
        drop_path_rate: Stochastic depth, where the network has it.

    Raises:
        UserError: an unknown name, a size that the network cannot take, weights that cannot be had
            or do not fit.
    """
    check_name(name)
    arguments = resolve_model_input_args(name, {"img_size": image_size, "in_chans": 1})
    arguments["num_classes"] = n_classes
    # An argument of 0 is left out, since not every network knows every argument.
    rates = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
    arguments |= {key: rate for key, rate in rates.items() if rate}
    if pretrained and weights is None:
        weights = pretrained_file(name)
    if small_patches:
        arguments |= _small_patches(name, arguments, image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = _construct(name, image_size, arguments)
        if weights is not None:
            torch.manual_seed(seed)
            backbone = load_weights(weights, name, arguments, untrained=backbone)
    return GreyImageNetwork(backbone)


def _construct(name: str, image_size: int, arguments: dict[str, Any]) -> nn.Module:
    """Build with random weights, and see that an image passes."""
    try:
        backbone = timm.create_model(**arguments)
        with torch.no_grad():
            logits = backbone.eval()(torch.zeros(1, 1, image_size, image_size))
    except _CONSTRUCTION_ERRORS:
        raise UserError(
            f"{name} cannot take images of {image_size} pixels; use another image_size or model."
        ) from None
    if logits.shape != (1, arguments["num_classes"]):
        raise UserError(f"{name} gives no classes; use another model.")
    return backbone


def _small_patches(name: str, arguments: dict[str, Any], image_size: int) -> dict[str, int]:
    """Smaller patches for a transformer whose image would be cut into a few only.

    Swin begins with patches of 4 pixels, which are small already; timm fits its windows.
    """
    if "img_size" not in arguments or image_size % _PATCHES_PER_SIDE:
        return {}
    with torch.device("meta"):
        embedding = getattr(timm.create_model(name), "patch_embed", None)
    patch = image_size // _PATCHES_PER_SIDE
    if type(embedding) is not PatchEmbed or patch >= embedding.patch_size[0]:
        return {}
    return {"patch_size": patch}
