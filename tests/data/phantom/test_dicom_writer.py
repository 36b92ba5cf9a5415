import numpy as np
import pydicom
import pytest
from pydicom.uid import SecondaryCaptureImageStorage

from sgc_experiments.data.phantom.dicom_writer import SYNTAXES, write_dicom
from sgc_experiments.errors import UserError


def _pixels(dtype: type, bits: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    # Odd sides: the pixel data must be padded to an even length.
    return rng.integers(0, 2**bits, (41, 33)).astype(dtype)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    ("dtype", "bits"), [(np.uint16, 12), (np.uint16, 14), (np.uint16, 16), (np.uint8, 8)]
)
def test_pixels_come_back_and_bytes_repeat(tmp_path, syntax, dtype, bits):
    pixels = _pixels(dtype, bits)
    files = [tmp_path / "a.dcm", tmp_path / "b.dcm"]
    for file in files:
        write_dicom(file, pixels, uid_seed="one", syntax=syntax, bits_stored=bits)
    assert files[0].read_bytes() == files[1].read_bytes()
    dataset = pydicom.dcmread(files[0])
    assert dataset.file_meta.TransferSyntaxUID == SYNTAXES[syntax]
    assert dataset.BitsStored == bits
    np.testing.assert_array_equal(dataset.pixel_array, pixels)


def test_uids_follow_the_seed_and_attributes_win(tmp_path):
    for name in ("a", "b"):
        write_dicom(
            tmp_path / name,
            _pixels(np.uint16, 12),
            uid_seed=name,
            photometric="MONOCHROME1",
            sop_class=SecondaryCaptureImageStorage,
            attributes={"StudyInstanceUID": "1.2.3", "WindowCenter": [1, 2], "Modality": None},
        )
    a, b = (pydicom.dcmread(tmp_path / name) for name in ("a", "b"))
    assert a.SOPInstanceUID != b.SOPInstanceUID
    assert a.file_meta.MediaStorageSOPInstanceUID == a.SOPInstanceUID
    assert a.StudyInstanceUID == b.StudyInstanceUID == "1.2.3"
    assert a.PhotometricInterpretation == "MONOCHROME1"
    assert a.SOPClassUID == SecondaryCaptureImageStorage
    assert list(a.WindowCenter) == [1, 2]
    assert "Modality" not in a


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(UserError, match="syntax='jpeg'"):
        write_dicom(tmp_path / "a", _pixels(np.uint16, 12), uid_seed="", syntax="jpeg")
    with pytest.raises(ValueError, match="does not fit in 10 bits"):
        write_dicom(tmp_path / "a", _pixels(np.uint16, 12), uid_seed="", bits_stored=10)
    with pytest.raises(ValueError, match="uint8 or uint16"):
        write_dicom(tmp_path / "a", np.zeros((2, 2), np.float32), uid_seed="")
    assert not (tmp_path / "a").exists()
