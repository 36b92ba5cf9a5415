"""One rule for lesion boxes, whether a table, a folder's list or a request gives them."""

import pytest

from sgc_experiments.data.boxes import is_box
from sgc_experiments.data.image_folder import read_boxes
from sgc_experiments.errors import UserError
from sgc_experiments.serving_input import read_files

INFINITY, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    "corners",
    [
        (5, 0, 5, 9), (0, 7, 9, 6), (-1, 0, 5, 5), (0, -0.5, 5, 5),
        (0, 0, INFINITY, 5), (0, 0, 5, INFINITY), (NAN, 0, 5, 5), (0, 0, 5, NAN),
    ],
)  # fmt: skip
def test_what_is_no_box_is_none_everywhere(corners, tmp_path):
    assert not is_box(*corners)
    table = tmp_path / "boxes.csv"
    table.write_text("path,x0,y0,x1,y1\n" + ",".join(map(str, ("a.png", *corners))))
    with pytest.raises(UserError, match=r"the box is not 0 ≤ x0 < x1 and 0 ≤ y0 < y1 in 1 row \(2"):
        read_boxes(table)
    row = {"image": b"bytes"} | dict(zip(("x0", "y0", "x1", "y1"), corners, strict=True))
    with pytest.raises(UserError, match=r"^(The box of image|Image) 1 "):
        read_files([row])


def test_what_is_a_box_is_one_everywhere(tmp_path):
    corners = (0.0, 1.5, 2.0, 1e9)
    assert is_box(*corners)
    table = tmp_path / "boxes.csv"
    table.write_text("path,x0,y0,x1,y1\n./a.png,0,1.5,2,1e9\n")
    assert read_boxes(table) == {"a.png": corners}
    row = {"image": b"bytes"} | dict(zip(("x0", "y0", "x1", "y1"), corners, strict=True))
    assert read_files([row])[0].box == corners


def test_a_list_of_boxes_needs_one_in_every_row(tmp_path):
    table = tmp_path / "boxes.csv"
    table.write_text("path,x0,y0,x1,y1\na.png,,,,\nb.png,0,0,9,9\nb.png,0,0,9,nine\n")
    with pytest.raises(UserError) as caught:
        read_boxes(table)
    assert "the box is not 0 ≤ x0 < x1 and 0 ≤ y0 < y1 in 2 rows (2, 4)" in str(caught.value)
    assert "path occurs twice in 2 rows (3, 4)" in str(caught.value)
