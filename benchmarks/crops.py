"""The images that the benchmarks share: lesion crops of a phantom, or all of it, by patient."""

from typing import NamedTuple

import numpy as np

from sgc_experiments.batches import ImageSet
from sgc_experiments.config import PrepareConfig, resolve_defaults
from sgc_experiments.data import load_dataset
from sgc_experiments.data.splits import low_data_subset, make_split


class Crops(NamedTuple):
    """Images by subset.

    Attributes:
        train: To learn from.
        validation: To choose on.
        test: To report on.
        test_patients: Of each test image.
        test_boxes: The lesion of each test image in its pixels, x0, y0, x1, y1; NaN without one.
        rest: Images of the patients that `n_patients` left out, (M, S, S).
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    test_patients: np.ndarray
    test_boxes: np.ndarray
    rest: np.ndarray


def phantom_crops(
    patients: int,
    image_size: int,
    *,
    difficulty: str = "standard",
    n_patients: int | None = None,
    input: str = "roi",
    seed: int = 0,
    window: int | None = None,
    shift: float = 1.0,
    per_image: int = 1,
) -> Crops:
    """Render, prepare and split a phantom; what is in the cache is not made again.

    Args:
        patients: Of the phantom, 2 or 4 images each.
        image_size: Side of the images in pixels.
        difficulty: Of the phantom.
        n_patients: How many patients training and validation may use; None means all.
        input: "roi", crops around lesions, or "whole".
        seed: Of the phantom.
        window: Cut a square of so many pixels out of each image, with the lesion in it.
        shift: How far from its centre, as a share of the room that the lesion leaves, at most.
        per_image: Windows of each training image.
    """
    config = resolve_defaults(PrepareConfig(), gpu=False)
    dataset = load_dataset(
        "phantom",
        data_dir=None,
        cache_dir=config.cache_dir,
        input=input,
        image_size=image_size,
        phantom={"patients": patients, "seed": seed, "difficulty": difficulty},
        progress=False,
    )
    split = make_split(dataset.table, seed=0, validation_fraction=0.15, test_fraction=0.25)
    if n_patients:
        split = low_data_subset(split, n_patients=n_patients, seed=0)
    labels = dataset.table["label"].to_numpy(np.int64)
    rows = {name: split.indices(name, dataset.table) for name in ("train", "validation", "test")}
    images, boxes = dataset.images, dataset.boxes
    cuts = [_windows(images, boxes, window, shift, k) for k in range(per_image)] if window else []
    if cuts:
        images, boxes = cuts[0]
    sets = {name: ImageSet(np.asarray(images[i]), labels[i]) for name, i in rows.items()}
    if cuts:
        windows = [cut[rows["train"]] for cut, _ in cuts]
        sets["train"] = ImageSet(np.concatenate(windows), np.tile(sets["train"].labels, per_image))
    patients = dataset.table["patient"]
    return Crops(
        **sets,
        test_patients=patients.to_numpy()[rows["test"]],
        test_boxes=boxes[rows["test"]],
        rest=np.asarray(images[~patients.isin(split.manifest["patient"]).to_numpy()]),
    )


def _windows(
    images: np.ndarray, boxes: np.ndarray, side: int, shift: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Windows (N, side, side) that hold the lesion, inside their image, and its boxes (N, 4) there.

    The lesion lies up to `shift` of the room that it leaves from the centre; without a lesion, the
    window lies anywhere.
    """
    generator = np.random.default_rng(seed)
    cut, moved = np.empty((len(images), side, side), images.dtype), boxes.copy()
    for i, (image, box) in enumerate(zip(images, boxes, strict=True)):
        furthest = len(image) - side
        if np.isfinite(box).all():
            room = np.maximum(0, side - (box[2:] - box[:2])) / 2
            corner = (box[:2] + box[2:] - side) / 2 + generator.uniform(-shift, shift, 2) * room
        else:
            corner = generator.uniform(0, furthest, 2)
        left, top = np.clip(np.rint(corner), 0, furthest).astype(int)
        cut[i] = image[top : top + side, left : left + side]
        moved[i] -= [left, top, left, top]
    return cut, moved
