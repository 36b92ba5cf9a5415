"""Images whose class can be seen: a disc whose brightness says it, under noise."""

import numpy as np

from sgc_experiments.batches import ImageSet

SIZE = 32


def discs(n, *, seed, malignant=0.5, contrast=0.25):
    """`contrast` 0 makes the classes alike."""
    generator = np.random.default_rng(seed)
    labels = (np.arange(n) < round(malignant * n)).astype(np.int64)
    y, x = np.mgrid[:SIZE, :SIZE]
    centres = generator.uniform(10, 22, (n, 2, 1, 1))
    disc = (x - centres[:, 0]) ** 2 + (y - centres[:, 1]) ** 2 < 36
    values = 0.4 + disc * (0.15 + contrast * labels[:, None, None])
    values = values + generator.normal(0, 0.08, (n, SIZE, SIZE))
    return ImageSet((values.clip(0, 1) * 65535).astype(np.uint16), labels)
