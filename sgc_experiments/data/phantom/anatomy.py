"""The breast around a synthetic lesion: outline, compressed thickness and fibroglandular tissue.

Coordinates: x counts columns from the chest wall (x = 0), y counts rows from the top. With image
height H and width W, the skin line is a perturbed superellipse,

    x(y) = A √(1 − |u|ⁿ) (1 + Σₖ aₖ cos(2kθ + φₖ)),   u = (y − y_c)/B = sin θ,   k = 1..3,

with A ~ U(.45, .75) W, B ~ U(.36, .45) H, n ~ U(1.9, 2.4), aₖ ~ N(0, .015). A mediolateral oblique
view adds the pectoral muscle, x < pₓ W (1 − (y/(p_y H))^q).

The compressed breast is T ~ U(4, 7) cm thick and rounded off towards the skin: at distance d from
the air, t = T √(1 − (1 − min(d/r, 1))²) with r = T/2.

Tissue texture is Gaussian noise with a power spectrum f^−β, β ~ N(2.9, .25), as Burgess measured
in mammograms (Medical Physics 28(4), 2001, doi:10.1118/1.1355308). The glandular fraction is a
sigmoid of that field around a quantile set by the density class; Cooper's ligaments are the zero
crossings of a second, finer field.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy import fft

HEIGHT, WIDTH = 640, 480
SPACING_MM = 0.375

_GLANDULAR_FRACTION = {1: 0.10, 2: 0.25, 3: 0.45, 4: 0.65}
"""Share of the breast area that is fibroglandular, by ACR density class."""


@dataclass(frozen=True)
class Anatomy:
    """What all views of one patient share; lengths in pixels unless named otherwise."""

    half_width: float
    half_height: float
    exponent: float
    ripple: np.ndarray  # (2, 3): amplitudes aₖ and phases φₖ
    thickness_cm: float
    beta: float
    density: int
    pectoral: tuple[float, float, float]  # pₓ, p_y, q
    tissue: np.ndarray  # (H, W//2 + 1) complex white noise in Fourier space


_TISSUE_EDGE = 0.5
"""Softness of the border between gland and fat, in standard deviations of the tissue field."""


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw one patient's anatomy."""
    return Anatomy(
        half_width=rng.uniform(0.45, 0.75) * WIDTH,
        half_height=rng.uniform(0.36, 0.45) * HEIGHT,
        exponent=rng.uniform(1.9, 2.4),
        ripple=np.stack([rng.normal(0, 0.015, 3), rng.uniform(0, 2 * np.pi, 3)]),
        thickness_cm=rng.uniform(4, 7),
        beta=rng.normal(2.9, 0.25),
        density=int(rng.choice(4, p=(0.35, 0.35, 0.22, 0.08))) + 1,
        pectoral=(rng.uniform(0.25, 0.4), rng.uniform(0.5, 0.8), rng.uniform(0.9, 1.3)),
        tissue=white_noise(rng, (HEIGHT, WIDTH)),
    )


def white_noise(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Fourier coefficients, (H, W//2 + 1) complex64, of white noise on an H × W grid."""
    height, width = shape
    parts = rng.standard_normal((height, width // 2 + 1, 2), dtype=np.float32)
    return parts.view(np.complex64)[..., 0]


def power_law_field(noise: np.ndarray, beta: float) -> np.ndarray:
    """Shape white noise (as `white_noise` returns it) into a field with spectrum f^−β.

    Returns:
        (H, W) float32 with mean 0 and variance 1.
    """
    height, half = noise.shape
    fy = np.fft.fftfreq(height).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(2 * (half - 1)).astype(np.float32)[None, :]
    squared = fy**2 + fx**2
    squared[0, 0] = 1.0
    amplitude = squared ** np.float32(-beta / 4)
    amplitude[0, 0] = 0.0
    field = fft.irfft2(noise * amplitude, s=(height, 2 * (half - 1)))
    unit: np.ndarray = field / field.std()
    return unit


def breast_mask(anatomy: Anatomy, view: str) -> tuple[np.ndarray, np.ndarray]:
    """The breast and the pectoral muscle, two boolean masks; the first holds the second.

    Both are (H, w), cut off at the column w ≤ W beyond which there is only air.
    """
    y = np.arange(HEIGHT)
    u = np.clip((y - HEIGHT / 2) / anatomy.half_height, -1, 1)
    theta = np.arcsin(u)
    amplitudes, phases = anatomy.ripple
    ripple = sum(
        a * np.cos(2 * k * theta + phase)
        for k, (a, phase) in enumerate(zip(amplitudes, phases, strict=True), start=1)
    )
    skin = anatomy.half_width * np.sqrt(1 - np.abs(u) ** anatomy.exponent) * (1 + ripple)
    if view == "MLO":
        px, py, q = anatomy.pectoral
        muscle = px * WIDTH * (1 - (y / (py * HEIGHT)) ** q)
    else:
        muscle = np.zeros(HEIGHT)
    x = np.arange(min(int(max(skin.max(), muscle.max())) + 3, WIDTH))
    pectoral = x[None, :] < muscle[:, None]
    return (x[None, :] < skin[:, None]) | pectoral, pectoral


def depth_below_skin(breast: np.ndarray) -> np.ndarray:
    """Distance of every breast pixel from the nearest air pixel, (H, w) float32, in pixels."""
    return cv2.distanceTransform(breast.astype(np.uint8), cv2.DIST_L2, 5)


def compressed_thickness(anatomy: Anatomy, depth: np.ndarray) -> np.ndarray:
    """Thickness in cm, (H, w) float32, 0 in air."""
    radius = anatomy.thickness_cm * 10 / SPACING_MM / 2
    inner = np.minimum(depth / radius, 1.0)
    thickness: np.ndarray = np.float32(anatomy.thickness_cm) * np.sqrt(1 - (1 - inner) ** 2)
    return thickness


def glandular_fraction(
    anatomy: Anatomy,
    breast: np.ndarray,
    pectoral: np.ndarray,
    depth: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Share of the thickness that is glandular, (H, w) float32 in [0, 1].

    Half of the texture's variance is the patient's own, half the view's (`rng`), so that two views
    resemble each other as two projections of one breast do.
    """
    own = white_noise(rng, (HEIGHT, WIDTH))
    field = power_law_field((anatomy.tissue + own) * np.float32(0.5**0.5), anatomy.beta)
    field = field[:, : breast.shape[1]]
    # Glandular tissue lies in the core; under the skin there is fat.
    field += 2.0 * np.minimum(depth / depth.max(), 0.5)
    threshold = np.quantile(field[breast][::16], 1 - _GLANDULAR_FRACTION[anatomy.density])
    fraction = 0.7 / (1 + np.exp(np.clip((threshold - field) / _TISSUE_EDGE, -30, 30)))
    fraction = cv2.GaussianBlur(fraction, (0, 0), 1.0)
    fraction += 0.08 * _ligaments(rng)[:, : breast.shape[1]]
    # Muscle attenuates like gland.
    muscle = cv2.GaussianBlur(pectoral.astype(np.float32), (0, 0), 4)
    with_muscle: np.ndarray = fraction * (1 - muscle) + np.float32(0.75) * muscle
    return with_muscle


def _ligaments(rng: np.random.Generator) -> np.ndarray:
    """Thin lines of constant width, (H, W) float32 in [0, 1]: zero crossings of a smooth field."""
    # Half the resolution is enough for lines a millimetre wide.
    field = power_law_field(white_noise(rng, (HEIGHT // 2, WIDTH // 2)), 3.5)
    field = cv2.GaussianBlur(field, (0, 0), 2)
    slope = np.hypot(
        cv2.Sobel(field, -1, 1, 0, scale=1 / 8), cv2.Sobel(field, -1, 0, 1, scale=1 / 8)
    )
    lines = np.exp(-((field / (1.2 * slope + 1e-6)) ** 2))
    return cv2.resize(lines, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
