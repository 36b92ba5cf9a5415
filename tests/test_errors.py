"""What of an error may be read by others."""

import pytest

from sgc_experiments.errors import without_paths


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("images=/data/DOE_JOHN/1950 is not a folder.", "images=… is not a folder."),
        ("config=~/doe/run.yaml: no such file", "config=…: no such file"),
        ("models:/sgc@champion, http://a.b/c or 1/5", "models:/sgc@champion, http://a.b/c or 1/5"),
    ],
)
def test_where_files_lie_is_not_told(text, told):
    assert without_paths(text) == told
