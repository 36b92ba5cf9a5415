"""The documentation is built from what is there, and its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from sgc_experiments.experiments import CONFIGS
from tests.conftest import ROOT

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_builds_without_a_warning_and_needs_no_other_server(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', text)
        assert not fetched, f"{page.name} fetches {fetched}"


def test_every_parameter_stands_on_its_page(site):
    page = (site / "parameters.html").read_text(encoding="utf-8")
    for config in CONFIGS.values():
        section = page.split(f'<h2 id="{config.entry_point}">')[1].split("<h2")[0]
        for name in config.model_fields:
            assert f"<code>{name}</code>" in section
    assert "vp, cosine, log_snr, sub_vp or ve" in page


def test_every_entry_point_has_a_page():
    named = {word for path in (ROOT / "docs").rglob("*.md") for word in path.stem.split("-")}
    stems = {path.stem.replace("-", "_") for path in (ROOT / "docs").rglob("*.md")}
    assert set(CONFIGS) - named - stems == set()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_the_pages_beside_the_code_lead_somewhere(name):
    links = _LINK.findall((ROOT / name).read_text(encoding="utf-8"))
    local = [link.split("#")[0] for link in links if not link.startswith(("http", "#"))]
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "images").glob("*.png"))
    assert pictures
    assert [p.name for p in pictures if p.stat().st_size >= 150_000] == []
