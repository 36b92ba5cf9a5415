"""Render synthetic mammograms: anatomy, a lesion, X-ray physics, detector.

A patient has one latent malignancy m, one anatomy and one density, which all of the views share, so
that a split that lets a patient straddle its subsets shows. Malignant patients draw
m ~ Beta(7, 2), benign ones m ~ Beta(2, 7): telling them apart by m itself has an AUC of .995, the
ceiling for every classifier. Every breast carries a lesion, so that finding one says nothing.

The signal is a line integral L = ∫ μ dz along a ray, with μ in 1/cm at mammographic energies: fat
.456, gland .802, cancer .844, calcification 12. The detector counts N ~ Poisson(N₀ exp(−L)); the
image is −ln(N/N₀), blurred, equalised for thickness and stored in 12 bits.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from sgc_experiments.data.phantom.anatomy import (
    HEIGHT,
    SPACING_MM,
    WIDTH,
    Anatomy,
    breast_mask,
    compressed_thickness,
    depth_below_skin,
    draw_anatomy,
    glandular_fraction,
)
from sgc_experiments.data.phantom.lesions import Lesion, draw_calcifications, draw_mass
from sgc_experiments.errors import UserError

MU_FAT, MU_GLAND, MU_CANCER, MU_CALCIUM = 0.456, 0.802, 0.844, 12.0

LATENT_BETA = (7.0, 2.0)
"""Beta parameters of a malignant patient's m; benign patients have them swapped."""

_BLOCK = 5
_MALIGNANT_PER_BLOCK = 2
"""Two of every five consecutive patients are malignant, in an order drawn from the seed."""

_PHOTONS = 2e5


@dataclass(frozen=True)
class Difficulty:
    """How visible lesions are.

    Attributes:
        calcifications: share of patients whose lesion is a cluster of calcifications.
        optical_depth: what a mass adds to L at its centre (median over patients), wherever it
            lies; None replaces tissue by cancer of the mass's own thickness, so that a mass
            stands out from fat and nearly vanishes in gland.
    """

    calcifications: float
    optical_depth: float | None


# The optical depth of "standard" was set by the yardsticks (yardsticks.py) and by nothing else: a
# random forest on hand-made features reaches an AUC between .82 and .92.
DIFFICULTIES = {
    "standard": Difficulty(calcifications=0.0, optical_depth=0.36),
    "hard": Difficulty(calcifications=0.45, optical_depth=None),
}


@dataclass(frozen=True)
class PhantomView:
    """One rendered mammogram, as it would be displayed: the chest wall of a left breast is left."""

    patient: int
    laterality: str  # "L" | "R"
    view: str  # "CC" | "MLO"
    malignant: bool
    latent: float  # m in [0, 1]
    density: int  # ACR class, 1..4
    kind: str  # "mass" | "calcification"
    pixels: np.ndarray  # (H, W) uint16, 0..4095, 0 in air
    outline: np.ndarray  # (K, 2) float, (x, y) in pixels: loose, may leave the image
    spacing_mm: float


def check_difficulty(difficulty: str) -> None:
    """Raise `UserError` unless `difficulty` is one of `DIFFICULTIES`."""
    if difficulty not in DIFFICULTIES:
        raise UserError(
            f"difficulty={difficulty!r} is not known; choose one of {', '.join(DIFFICULTIES)}"
        )


def is_malignant(patient: int, *, seed: int) -> bool:
    """The patient's label: exactly two of every five consecutive patients are malignant."""
    block, place = divmod(patient, _BLOCK)
    order = np.random.default_rng([seed, 0, block]).permutation(_BLOCK)
    return bool(order[place] < _MALIGNANT_PER_BLOCK)


@dataclass(frozen=True)
class _Disease:
    """What a patient's lesions have in common."""

    latent: float
    kind: str
    radius: float  # mean radius in pixels, 5 to 9 mm
    contrast: float  # around 1
    at_chest_wall: bool  # so close that the image cuts its outline in the CC view


def render_patient(patient: int, *, seed: int, difficulty: str) -> list[PhantomView]:
    """Render all views of one patient.

    Deterministic in (patient, seed, difficulty): it does not matter how many other patients are
    rendered, in what order or in which process.

    Args:
        patient: number of the patient, from 0.
        seed: of the whole phantom, from 0.
        difficulty: a key of `DIFFICULTIES`.

    Returns:
        CC and MLO of one breast, for one patient in five of both: 2 or 4 views.

    Raises:
        UserError: unknown `difficulty`.
    """
    check_difficulty(difficulty)
    settings = DIFFICULTIES[difficulty]
    rng = np.random.default_rng([seed, 1, patient])
    malignant = is_malignant(patient, seed=seed)
    disease = _Disease(
        latent=float(rng.beta(*(LATENT_BETA if malignant else LATENT_BETA[::-1]))),
        kind="calcification" if rng.random() < settings.calcifications else "mass",
        radius=rng.uniform(5.0, 9.0) / SPACING_MM,
        contrast=float(np.exp(rng.normal(0, 0.25))),
        at_chest_wall=patient % 9 == 4,
    )
    sides = ("L", "R") if rng.random() < 0.2 else (str(rng.choice(["L", "R"])),)
    anatomy = draw_anatomy(rng)

    views = []
    for laterality in sides:
        for view in ("CC", "MLO"):
            pixels, outline = _render_view(anatomy, disease, view, settings, rng)
            if laterality == "R":
                pixels = np.ascontiguousarray(pixels[:, ::-1])
                outline = np.array([WIDTH - 1, 0]) + outline * np.array([-1, 1])
            views.append(
                PhantomView(
                    patient=patient,
                    laterality=laterality,
                    view=view,
                    malignant=malignant,
                    latent=disease.latent,
                    density=anatomy.density,
                    kind=disease.kind,
                    pixels=pixels,
                    outline=outline,
                    spacing_mm=SPACING_MM,
                )
            )
    return views


def _render_view(
    anatomy: Anatomy,
    disease: _Disease,
    view: str,
    settings: Difficulty,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """One view with the chest wall at x = 0: pixels and the lesion's outline."""
    breast, pectoral = breast_mask(anatomy, view)
    depth = depth_below_skin(breast)
    thickness = compressed_thickness(anatomy, depth)
    glandular = glandular_fraction(anatomy, breast, pectoral, depth, rng)
    attenuation = np.float32(MU_FAT) + np.float32(MU_GLAND - MU_FAT) * glandular
    integral = thickness * attenuation

    at_chest_wall = disease.at_chest_wall and view == "CC"
    x, y = _place(pectoral, depth, disease.radius, at_chest_wall, rng)
    if disease.kind == "calcification":
        lesion = draw_calcifications(disease.latent, disease.radius, SPACING_MM, rng)
        # The patch counts millimetres of calcium.
        strength = np.full_like(attenuation, MU_CALCIUM / 10 * disease.contrast)
    else:
        lesion = draw_mass(disease.latent, disease.radius, rng)
        if settings.optical_depth is None:
            chord_cm = 2 * disease.radius * SPACING_MM / 10
            strength = chord_cm * disease.contrast * (MU_CANCER - attenuation)
        else:
            strength = np.full_like(attenuation, settings.optical_depth * disease.contrast)
    _add(integral, lesion, strength, x, y)
    pixels = _detect(integral, thickness, anatomy.thickness_cm, breast, rng)
    return pixels, lesion.outline + np.array([x, y])


def _place(
    pectoral: np.ndarray,
    depth: np.ndarray,
    radius: float,
    at_chest_wall: bool,
    rng: np.random.Generator,
) -> tuple[int, int]:
    """A random centre (x, y) well inside the breast and outside the muscle."""
    margin = min(1.5 * radius + 5 / SPACING_MM, 0.8 * float(depth.max()))
    allowed = (depth >= margin) & ~pectoral
    allowed[:, : int(0.6 * radius)] = False
    if at_chest_wall:
        allowed[:, int(radius) :] = False
    else:
        allowed[:, : int(radius)] = False
    rows, columns = np.nonzero(allowed[::2, ::2])
    choice = int(rng.integers(len(rows)))
    return 2 * int(columns[choice]), 2 * int(rows[choice])


def _add(integral: np.ndarray, lesion: Lesion, strength: np.ndarray, x: int, y: int) -> None:
    """Add the part of the lesion that lies in the image, in place."""
    half = lesion.half_size
    top, left = max(y - half, 0), max(x - half, 0)
    window = np.s_[top : y + half + 1, left : x + half + 1]
    height, width = integral[window].shape
    offset_y, offset_x = top - (y - half), left - (x - half)
    patch = lesion.patch[offset_y : offset_y + height, offset_x : offset_x + width]
    integral[window] += patch * strength[window]


def _detect(
    integral: np.ndarray,
    thickness: np.ndarray,
    compressed_cm: float,
    breast: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Quantum noise, −ln, detector blur, thickness equalisation, 12 bits."""
    noise = rng.standard_normal(integral.shape, dtype=np.float32)
    # −ln of a Poisson count with mean N₀ e^−L is L with standard deviation e^(L/2)/√N₀, as the
    # counts are in the thousands.
    signal = integral + noise * np.exp(integral / 2) * np.float32(_PHOTONS**-0.5)
    signal = cv2.GaussianBlur(signal, (0, 0), 0.6)
    signal += np.float32(0.55) * (np.float32(compressed_cm) - thickness)
    values = 250 + (signal / np.float32(compressed_cm) - 0.40) * 8500
    pixels = np.zeros((HEIGHT, WIDTH), np.uint16)
    pixels[:, : breast.shape[1]] = np.where(breast, np.clip(values, 60, 4095), 0).round()
    return pixels
