"""Random changes of a batch of crops that leave the diagnosis as it is.

The eight symmetries of the square move pixels without mixing them, so that the noise texture of
the image, which a density model learns too, stays as it was. Rotation, scale and shift interpolate;
they are off by default. Contrast and brightness stand for exposure and detector.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

SYMMETRIES = 8


@dataclass(frozen=True)
class AugmentationSettings:
    """What `augment` may do to an image of range [−1, 1].

    Attributes:
        horizontal_flip: Mirror left and right, for half of the images.
        vertical_flip: Mirror top and bottom, for half of the images.
        transpose: Swap the axes, for half of the images; with both flips, all eight symmetries.
        rotation: Largest angle in degrees, drawn uniformly from ± this.
        scale: Largest relative change of size, log-uniform: 0.1 is 1/1.1 to 1.1.
        shift: Largest shift along each axis as a fraction of the side.
        contrast: Largest relative change of contrast about the image's own mean, log-uniform.
        brightness: Largest change of the mean, in units of the range [−1, 1].
    """

    horizontal_flip: bool = True
    vertical_flip: bool = True
    transpose: bool = False
    rotation: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    contrast: float = 0.0
    brightness: float = 0.0

    def __post_init__(self) -> None:
        limits = {"rotation": 180, "scale": 1, "shift": 1, "contrast": 1, "brightness": 1}
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(
                    f"augmentation.{name} must be in [0, {limit}], not {getattr(self, name)}"
                )

    @classmethod
    def none(cls) -> "AugmentationSettings":
        """Images as they are."""
        return cls(horizontal_flip=False, vertical_flip=False, transpose=False)

    def symmetries(self) -> tuple[int, ...]:
        """The codes of `apply_symmetry` under which training images are equally likely."""
        allowed = self.horizontal_flip | self.vertical_flip << 1 | self.transpose << 2
        return tuple(code for code in range(SYMMETRIES) if code & ~allowed == 0)


def apply_symmetry(images: Tensor, code: int) -> Tensor:
    """Symmetry 0 ≤ `code` < 8 of the square, of images (..., S, S).

    Bit 0 mirrors the columns, bit 1 the rows, and bit 2 then swaps the axes.
    """
    if code & 1:
        images = images.flip(-1)
    if code & 2:
        images = images.flip(-2)
    return images.transpose(-1, -2) if code & 4 else images


def undo_symmetry(images: Tensor, code: int) -> Tensor:
    """Inverse of `apply_symmetry`."""
    if code & 4:
        images = images.transpose(-1, -2)
    return apply_symmetry(images, code & 3)


def augment(images: Tensor, settings: AugmentationSettings, generator: torch.Generator) -> Tensor:
    """A random variant of each image.

    Args:
        images: (B, 1, S, S), range [−1, 1].
        settings: What may change.
        generator: On the device of the images; the result depends on its state alone.

    Returns:
        (B, 1, S, S), range [−1, 1].
    """
    batch = images.shape[0]

    def uniform(limit: float) -> Tensor:
        draw = torch.rand(batch, 1, 1, 1, generator=generator, device=images.device)
        return (2 * draw - 1) * limit

    for allowed, code in (
        (settings.horizontal_flip, 1),
        (settings.vertical_flip, 2),
        (settings.transpose, 4),
    ):
        if allowed:
            images = torch.where(uniform(1) < 0, apply_symmetry(images, code), images)
    if settings.rotation or settings.scale or settings.shift:
        angle = uniform(math.radians(settings.rotation))
        zoom = torch.exp(uniform(math.log1p(settings.scale)))
        images = _resample(
            images, angle, zoom, uniform(2 * settings.shift), uniform(2 * settings.shift)
        )
    if settings.contrast or settings.brightness:
        mean = images.mean((1, 2, 3), keepdim=True)
        contrast = torch.exp(uniform(math.log1p(settings.contrast)))
        images = mean + (images - mean) * contrast + uniform(settings.brightness)
    return images.clamp(-1, 1)


def _resample(images: Tensor, angle: Tensor, zoom: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Rotate, scale and shift about the centre; the border is mirrored. Each argument (B,1,1,1)."""
    cos, sin = angle.cos().flatten() / zoom.flatten(), angle.sin().flatten() / zoom.flatten()
    rows = [torch.stack([cos, -sin, dx.flatten()], 1), torch.stack([sin, cos, dy.flatten()], 1)]
    grid = affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="reflection", align_corners=False)
