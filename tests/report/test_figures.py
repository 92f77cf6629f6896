"""Figures for papers: SVG with text as text, PDF, and whatever names a study has."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.report.study import EVIL
from vshift.report.figures import FIGURES, specs, write_figures
from vshift.report.study import Study


@pytest.fixture(scope="module")
def folder(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("figures") / "new"
    written = write_figures(study, path)
    assert sorted(written) == sorted(path.iterdir())
    return path


def test_every_figure_as_svg_and_pdf(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {f"{figure.id}.{kind}" for figure in FIGURES for kind in ("svg", "pdf")}
    for path in folder.glob("*.pdf"):
        assert path.read_bytes().startswith(b"%PDF-")
        assert path.stat().st_size > 2000


def test_svg_is_xml_with_marks_and_text(folder: Path) -> None:
    for path in folder.glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        assert root.findall(".//{*}script") == []
        assert len(root.findall(".//{*}path")) > 3
    text = "".join(ElementTree.parse(folder / "depth.svg").getroot().itertext())
    for word in ("shift ratio", "arm-bn-0.5", "s1.b1.bn2", EVIL[:12]):
        assert word in text


def test_every_figure_is_described_for_those_who_cannot_see_it(study: Study) -> None:
    drawn = specs(study)
    for figure in FIGURES:
        assert drawn[figure.id]["description"] == figure.caption
