"""Images in memory, and the order in which training sees them."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sgc_experiments.errors import UserError

_CHUNK = 256  # images on a device at once


class ImageSet(NamedTuple):
    """Images and their labels; row i of both is one image.

    Attributes:
        images: uint16 (N, S, S), 0 is background; may be memory-mapped.
        labels: int64 (N,), from 0; −1 is an image without a label.
    """

    images: np.ndarray
    labels: np.ndarray


def to_model_range(images: np.ndarray) -> Tensor:
    """uint16 (N, S, S) to float32 (N, 1, S, S) in [−1, 1]."""
    return torch.from_numpy(np.asarray(images, dtype=np.float32)).unsqueeze(1) / 32767.5 - 1


def from_model_range(images: Tensor) -> np.ndarray:
    """Inverse of `to_model_range`; values beyond [−1, 1] are clipped."""
    levels = ((images[:, 0].clamp(-1, 1) + 1) * 32767.5).round()
    return levels.cpu().numpy().astype(np.uint16)


def check_images(images: np.ndarray, side: int) -> None:
    """Refuse anything but uint16 images (N, S, S) of the side S that a model has.

    Raises:
        UserError: They are none.
    """
    if images.ndim != 3 or images.shape[1:] != (side, side) or images.dtype != np.uint16:
        raise UserError(
            f"Images must be uint16 of shape (N, {side}, {side}), "
            f"not {images.dtype} of shape {images.shape}."
        )


def check_labels(labels: np.ndarray, classes: Sequence[str]) -> None:
    """Refuse training labels, int64 (N,), without an image of each class; −1 is no label.

    Raises:
        UserError: A class has no image, or a label no class.
    """
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    if len(counts) > len(classes):
        raise UserError(f"Training labels reach {len(counts) - 1}; classes are {tuple(classes)}.")
    for name, count in zip(classes, counts, strict=True):
        if not count:
            raise UserError(
                f"No training image is {name}: a class needs at least one. "
                "Use more patients, or another split."
            )


def evenly_spaced(count: int, wanted: int) -> np.ndarray:
    """Rows, int64, of `wanted` of `count` images, or of all if there are no more; none twice."""
    return np.linspace(0, count - 1, min(count, wanted)).astype(np.int64)


def chunks(count: int) -> Iterator[slice]:
    """Where to cut `count` images, so that a device holds a few hundred of them at once."""
    for start in range(0, count, _CHUNK):
        yield slice(start, start + _CHUNK)


def stream_seed(seed: int, purpose: str, index: int) -> int:
    """A seed for one purpose at one step or epoch, unrelated to all others."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class BatchOrder:
    """The infinite sequence of training images, cut into batches.

    An epoch is a permutation of all images; or, balanced, as many draws in which every class has
    an equal share, each running through permutations of its own. Images without a label, if there
    are any, are dealt apart and evenly spread: an `unlabelled_share` of the sequence is theirs.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        batch_size: int,
        balanced: bool,
        seed: int,
        unlabelled_share: float = 0.5,
    ) -> None:
        known = np.flatnonzero(labels >= 0)
        self.groups = [np.flatnonzero(labels == label) for label in np.unique(labels[known])]
        if not balanced:
            self.groups = [known]
        unlabelled = np.flatnonzero(labels < 0)
        self.share = unlabelled_share if len(unlabelled) else 0.0
        if len(unlabelled):
            self.groups.append(unlabelled)
        self.batch_size, self.seed = batch_size, seed
        self._latest: dict[int, tuple[int, np.ndarray]] = {}

    def batch(self, step: int) -> np.ndarray:
        """Indices of batch `step`, int64 (batch_size,)."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        turns, places = self._deal(positions)
        indices = np.empty(self.batch_size, dtype=np.int64)
        for turn, group in enumerate(self.groups):
            mine = turns == turn
            epochs, offsets = np.divmod(places[mine], len(group))
            orders = {epoch: self._permutation(turn, epoch) for epoch in np.unique(epochs)}
            indices[mine] = [
                group[orders[epoch][offset]] for epoch, offset in zip(epochs, offsets, strict=True)
            ]
        # Mixed, lest a stratified λ go with a class.
        mix = np.random.default_rng(stream_seed(self.seed, "mix", step))
        return mix.permutation(indices)

    def _deal(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which group's turn each position is, and its place in the sequence of that group."""
        if not self.share:
            return positions % len(self.groups), positions // len(self.groups)
        before = np.floor(positions * self.share).astype(np.int64)
        theirs = np.floor((positions + 1) * self.share).astype(np.int64) > before
        labelled, classes = positions - before, len(self.groups) - 1
        turns = np.where(theirs, classes, labelled % classes)
        return turns, np.where(theirs, before, labelled // classes)

    def _permutation(self, group: int, epoch: int) -> np.ndarray:
        """Kept until the next epoch's: making one costs as much as the images are many."""
        if group not in self._latest or self._latest[group][0] != epoch:
            generator = np.random.default_rng(stream_seed(self.seed, f"order {group}", epoch))
            self._latest[group] = epoch, generator.permutation(len(self.groups[group]))
        return self._latest[group][1]
