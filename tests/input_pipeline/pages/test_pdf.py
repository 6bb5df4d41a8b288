"""Pages of PDF files, drawn at a stated resolution."""

import json
import logging

import numpy as np
import pytest
from messages import message_of
from PIL import Image

from saghog_jax.configs.common import data_config
from saghog_jax.input_pipeline.pages import pdf
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.input_pipeline.pages.sources import load_manifest

needs_part = pytest.mark.skipif(not pdf.can_draw(), reason="needs pypdfium2")


def scans(path, count, grey=60):
    """A PDF of pages of 2 x 1 inches, each with a bar at another height."""
    pages = []
    for i in range(count):
        page = np.full((100, 200), 255, np.uint8)
        page[10 * i : 10 * i + 10] = grey
        pages.append(Image.fromarray(page))
    path.parent.mkdir(parents=True, exist_ok=True)
    pages[0].save(path, "PDF", resolution=100, save_all=True, append_images=pages[1:])


def load(pages, tmp_path, **changes):
    data = data_config("")
    data.pages, data.cache, data.pdf_dpi = str(pages), str(tmp_path / "cache"), 100
    data.update(changes)
    return load_manifest(data)


def test_without_the_optional_part_the_remedy_is_told(tmp_path, monkeypatch):
    scans(tmp_path / "letters.pdf", 1)
    monkeypatch.setattr(pdf, "can_draw", lambda: False)
    for pages in (tmp_path, tmp_path / "letters.pdf"):
        message = message_of(load, pages, tmp_path)
        assert (
            "leads to PDF files ('letters.pdf'); install the optional part for its pages" in message
        )
        assert "pip install 'saghog_jax[pdf]'" in message


@needs_part
def test_each_page_is_one(tmp_path, caplog):
    scans(tmp_path / "Müller 1.PDF", 3)
    with caplog.at_level(logging.INFO):
        manifest = load(tmp_path / "Müller 1.PDF", tmp_path)
    assert caplog.messages[-1] == "3 pages of 1 PDF files, at 100 dpi"
    assert [page.page for page in manifest.pages] == [f"Müller 1_p000{i}" for i in (1, 2, 3)]
    for i, page in enumerate(manifest.pages):
        pixels = load_page(manifest.root / page.path, None, 10**6)
        assert pixels.shape == (100, 200, 3)
        dark = np.flatnonzero((pixels < 128).all((1, 2)))
        assert set(range(10 * i + 1, 10 * i + 9)) <= set(dark) <= set(range(10 * i, 10 * i + 10))


@needs_part
def test_the_resolution_is_that_of_the_config(tmp_path):
    scans(tmp_path / "a.pdf", 1)
    for dpi, shape in ((100, (100, 200, 3)), (150, (150, 300, 3))):
        manifest = load(tmp_path / "a.pdf", tmp_path, pdf_dpi=dpi)
        (page,) = manifest.pages
        assert f"-{dpi}dpi/a_p0001.png" in page.path
        assert load_page(manifest.root / page.path, None, 10**6).shape == shape
    for dpi in (49, 1201):
        message = message_of(load, tmp_path / "a.pdf", tmp_path, pdf_dpi=dpi)
        assert message == f"data.pdf_dpi={dpi} must be between 50 and 1200 pixels an inch"


@needs_part
def test_a_folder_of_pdfs(tmp_path):
    scans(tmp_path / "pdfs" / "anne_1.pdf", 2)
    scans(tmp_path / "pdfs" / "sub" / "bert_1.pdf", 1, grey=0)
    manifest = load(tmp_path / "pdfs", tmp_path, writer_regex=r"([a-z]+)_\d", page_regex=r"_(p\d+)")
    assert [(page.writer, page.page) for page in manifest.pages] == [
        ("anne", "p0001"),
        ("anne", "p0002"),
        ("bert", "p0001"),
    ]
    assert all((manifest.root / page.path).is_file() for page in manifest.pages)
    # The same pages have the same ids when their PDF is given alone.
    alone = load(tmp_path / "pdfs" / "anne_1.pdf", tmp_path)
    assert [p.page_id for p in alone.pages] == [p.page_id for p in manifest.pages[:2]]


@needs_part
def test_pages_are_drawn_once(tmp_path, monkeypatch):
    scans(tmp_path / "a.pdf", 2)
    first = load(tmp_path / "a.pdf", tmp_path)
    with monkeypatch.context() as context:
        context.setattr(pdf, "_draw_page", None)
        assert load(tmp_path / "a.pdf", tmp_path) == first
    scans(tmp_path / "a.pdf", 3)
    assert len(load(tmp_path / "a.pdf", tmp_path)) == 3
    # A folder without pages.json was not finished.
    folder = (first.root / first.pages[0].path).parent
    (folder / "pages.json").unlink()
    scans(tmp_path / "a.pdf", 2)
    assert load(tmp_path / "a.pdf", tmp_path) == first
    assert json.loads((folder / "pages.json").read_text())["pages"] == 2


@needs_part
def test_what_cannot_be_read_is_named(tmp_path, caplog):
    scans(tmp_path / "a.pdf", 1)
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.4\nno more")
    with caplog.at_level(logging.WARNING):
        assert len(load(tmp_path, tmp_path)) == 1
    assert caplog.messages[-1].startswith("1 PDF files or pages are left out: 'b.pdf: Failed to")
    message = message_of(load, tmp_path / "b.pdf", tmp_path)
    assert "no page can be read; b.pdf: Failed to load document" in message
    message = message_of(load, tmp_path / "a.pdf", tmp_path, max_pixels=100)
    assert "a.pdf page 1: 200 x 100 pixels at data.pdf_dpi=100 are more than" in message
