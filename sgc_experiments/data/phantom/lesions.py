"""Synthetic lesions whose look depends on one latent number, the malignancy m ∈ [0, 1].

A mass is a Gaussian random star (after de Sisternes et al., Medical Physics 42(1), 2015): its
radius is

    r(θ) = R (1 + s(θ)),   std s = .06 + .24 m,   power of the k-th harmonic ∝ k^−(4 − 2m),

with Poisson(14 m^1.5) spicules that start at its rim, and an edge blurred by R (.03 + .16 m). The
mean radius R does not depend on m, and neither do the mean and the variance that the mass adds to
its neighbourhood: only shape and edge tell.

A cluster of calcifications has U{4..7} + Poisson(14 m) specks; the spread of their sizes, their
elongation and their alignment along a duct grow with m.
"""

from dataclasses import dataclass

import cv2
import numpy as np

_HARMONICS = np.arange(2, 17)
_ANGLES = 360


@dataclass(frozen=True)
class Lesion:
    """A lesion drawn on a patch of its own."""

    patch: np.ndarray  # (2h + 1, 2h + 1) float32 in [0, 1]: 1 = the lesion's full depth
    outline: np.ndarray  # (K, 2) float, (x, y) in pixels from the patch's centre

    @property
    def half_size(self) -> int:
        """Pixels from the patch's centre to its rim."""
        return int(self.patch.shape[0] // 2)


def draw_mass(m: float, radius: float, rng: np.random.Generator) -> Lesion:
    """Draw a mass of malignancy `m` and mean radius `radius` (pixels)."""
    half = int(np.ceil(2.6 * radius))
    grid = np.arange(-half, half + 1, dtype=np.float32)
    distance = np.hypot(grid[None, :], grid[:, None])
    angle = np.arctan2(grid[:, None], grid[None, :])

    star = radius * (1 + _random_star(m, rng))
    # Equal area whatever the shape, so that size does not tell benign from malignant.
    star *= radius / np.sqrt(np.mean(star**2))
    index = (angle / (2 * np.pi) * _ANGLES).astype(int) % _ANGLES
    relative = np.minimum(distance / star[index], 1.0)
    patch = np.sqrt(1 - relative**4)
    sigma = radius * (0.03 + 0.16 * m)
    patch = cv2.GaussianBlur(patch.astype(np.float32), (0, 0), sigma)
    patch = np.maximum(patch, _spicules(m, radius, star, half, rng))
    return Lesion(patch=_equal_energy(patch, radius), outline=_lasso(radius, rng))


def _random_star(m: float, rng: np.random.Generator) -> np.ndarray:
    """Relative radius deviation at `_ANGLES` equidistant angles, std .06 + .24 m, above −.7."""
    power = _HARMONICS ** -(4 - 2 * m)
    power *= (0.06 + 0.24 * m) ** 2 / power.sum()
    cosine, sine = rng.normal(size=(2, len(_HARMONICS))) * np.sqrt(power)
    theta = np.arange(_ANGLES) * 2 * np.pi / _ANGLES
    phase = _HARMONICS[:, None] * theta
    rim: np.ndarray = np.maximum(cosine @ np.cos(phase) + sine @ np.sin(phase), -0.7)
    return rim


def _spicules(
    m: float, radius: float, star: np.ndarray, half: int, rng: np.random.Generator
) -> np.ndarray:
    """Thin wedges that radiate from the rim; same grid as the mass, (2h + 1, 2h + 1) in [0, 1]."""
    canvas = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    for _ in range(rng.poisson(14 * m**1.5)):
        direction = rng.uniform(0, 2 * np.pi)
        start = 0.5 * star[int(direction / (2 * np.pi) * _ANGLES) % _ANGLES]
        length = rng.uniform(0.5, 1.2) * radius
        width = rng.uniform(0.08, 0.16) * radius
        bend = rng.normal(0, 0.15)
        along = np.array([np.cos(direction), np.sin(direction)])
        across = np.array([-along[1], along[0]])
        base, tip = along * start, along * (2 * start + length) + across * bend * length
        wedge = np.stack([base + across * width, tip, base - across * width]) + half
        layer = np.zeros(canvas.shape, np.uint8)
        points = np.round(wedge * 16).astype(np.int32)
        cv2.fillConvexPoly(layer, points, 255, lineType=cv2.LINE_AA, shift=4)
        np.maximum(canvas, layer * np.float32(rng.uniform(0.4, 0.7) / 255), out=canvas)
    return cv2.GaussianBlur(canvas, (0, 0), 0.03 * radius + 0.3)


def _equal_energy(patch: np.ndarray, radius: float) -> np.ndarray:
    """Scale the patch so that Σ patch² is that of a sharp disc, .6 π R²."""
    return patch * np.float32(np.sqrt(0.6 * np.pi * radius**2 / np.sum(patch**2)))


def _lasso(radius: float, rng: np.random.Generator) -> np.ndarray:
    """A radiologist's loose contour around a lesion, (24, 2): its size and form ignore m."""
    theta = np.arange(24) * 2 * np.pi / 24
    wobble = sum(
        rng.normal(0, 0.05) * np.cos(k * theta + rng.uniform(0, 2 * np.pi)) for k in (2, 3)
    )
    contour = radius * rng.uniform(1.2, 1.4) * (1 + wobble)
    return np.stack([contour * np.cos(theta), contour * np.sin(theta)], axis=1)


def draw_calcifications(
    m: float, radius: float, spacing_mm: float, rng: np.random.Generator
) -> Lesion:
    """Draw a cluster of malignancy `m` that fills a disc of `radius` pixels.

    The patch is the calcium's depth in units of 1 mm.
    """
    half = int(np.ceil(1.5 * radius))
    count = int(rng.integers(4, 8)) + rng.poisson(14 * m)
    # Along a duct when m is high, isotropic when it is low; the larger axis stays the same.
    axes = radius * np.array([0.5, 0.5 * (1 - 0.65 * m)])
    tilt = rng.uniform(0, np.pi)
    turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    places = np.clip(rng.normal(size=(count, 2)), -2, 2) * axes @ turn.T
    canvas = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    grid = np.arange(-half, half + 1, dtype=np.float32)
    for x, y in places:
        diameter_mm = 0.45 * np.exp(rng.normal(0, 0.1 + 0.4 * m))
        stretch = 1 + rng.gamma(2.0, 0.5 * m + 1e-6)
        direction = tilt + rng.normal(0, 1.5 - m)
        dx, dy = grid[None, :] - x, grid[:, None] - y
        major = (dx * np.cos(direction) + dy * np.sin(direction)) / np.sqrt(stretch)
        minor = (dy * np.cos(direction) - dx * np.sin(direction)) * np.sqrt(stretch)
        sigma = diameter_mm / spacing_mm / 2.5
        canvas += diameter_mm * np.exp(-(major**2 + minor**2) / (2 * sigma**2))
    return Lesion(patch=canvas, outline=_lasso(radius, rng))
