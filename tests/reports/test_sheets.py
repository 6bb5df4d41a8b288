"""The text and the data of report files."""

import datetime
import html.parser
import re

import numpy as np
import pytest
from planted import page, pages_of, planted
from report_helpers import EVIL, data_of, report

from saghog_jax import retrieve
from saghog_jax.configs import retrieve as retrieve_config
from saghog_jax.reports.thumbnails import read_pages, thumbnail
from saghog_jax.retrieval.embeddings import load_embeddings


class Tags(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_sheets_say_what_the_ranking_says(small):
    data = data_of(small)
    assert len(data["sheets"]) == 22
    sheet = data["sheets"][0]
    assert sheet["q"] == "p0"
    assert len(sheet["hits"]) == 10
    assert sheet["relevant"] == 3
    for key, distance, mark, share, same in sheet["hits"]:
        assert same is False
        same = data["pages"][key]["writer"] == "w00"
        known = bool(data["pages"][key]["writer"])
        assert mark == ("right" if same else "wrong" if known else "unknown")
        assert 0 <= distance <= 2
        assert share is None
    assert data["sheets"][20]["why"] == "writer unknown"
    assert data["sheets"][21]["why"] == "no relevant page in the collection"


def test_without_writers_the_sheets_are_the_result(tmp_path):
    text = report(tmp_path, [page(f"{i}.png", "", "1") for i in range(3)]).read_text()
    assert "No page has a known writer, so there are no metrics: the sheets are the result" in text
    alone = report(tmp_path, [page("a.png", "w", "1"), page("b.png", "", "1")]).read_text()
    assert "No page has a relevant page, so there are no metrics" in alone


def test_the_title_names_the_collection(tmp_path):
    today = datetime.date.today().isoformat()
    pages = pages_of(2, 2)
    text = report(tmp_path / "letters", pages, images=False).read_text()
    assert f"<h1>letters/pages: 4 pages, {today}</h1>" in text
    # The folder above is named where the name of the folder of the pages says nothing.
    for title, expected in (("", "letters/pages"), ("Zürich, C 12", "Zürich, C 12")):
        text = report(tmp_path / "letters", pages, images=False, title=title).read_text()
        assert f"<title>{expected}: 4 pages, {today}</title>" in text


def test_where_no_writer_is_known_nothing_speaks_of_writers(tmp_path):
    data = data_of(report(tmp_path, [page(f"{i}.png", "", "1") for i in range(5)]))
    assert all("why" not in sheet for sheet in data["sheets"])
    some = data_of(report(tmp_path, [page("a.png", "w", "1"), page("b.png", "", "1")]))
    assert [sheet["why"] for sheet in some["sheets"]] == [
        "no relevant page in the collection",
        "writer unknown",
    ]


def test_distance_of_the_average_page_is_the_mean_distance(small, tmp_path):
    x = np.load(tmp_path / "e" / "embeddings.npy")
    for sheet in data_of(small)["sheets"]:
        assert sheet["average"] == pytest.approx((1 - x @ x[sheet["row"]]).mean(), abs=1e-4)


def test_after_reranking_there_is_no_average_page(tmp_path):
    planted(tmp_path / "e", pages_of(3, 3))
    config = retrieve_config.get_config()
    config.embeddings, config.bootstrap, config.rerank.method = str(tmp_path / "e"), 0, "qe"
    retrieve.run(config, tmp_path / "out")
    data = data_of(tmp_path / "out" / "report.html")
    assert all("average" not in sheet for sheet in data["sheets"])
    command = data["proof"]["command"]
    assert f"--config.embeddings={tmp_path / 'e'} " in command
    assert "--config.rerank.method=qe " in command
    assert "--config.rerank.k=2 " in command
    assert "whitening" not in command
    assert command.endswith(f"--config.top_k=10 --workdir={tmp_path / 'out'}")


def test_queries_with_relevant_pages_come_first(tmp_path):
    pages = [page("a.png"), page("b.png", "only"), *pages_of(2, 2), page("z.png")]
    data = data_of(report(tmp_path, pages, images=False))
    assert [sheet["row"] for sheet in data["sheets"]] == [2, 3, 4, 5, 0, 1, 6]


def test_pictures_and_links_to_originals(small, tmp_path):
    data = data_of(small)
    for about in data["pages"].values():
        assert about["image"].startswith("data:image/webp;base64,")
        assert about["size"] == [60, 40]
    odd = next(a for a in data["pages"].values() if a["id"].startswith("odd"))
    assert odd["href"] == "../pages/odd%20name%20%231%25.png"
    assert (tmp_path / "pages" / "odd name #1%.png").exists()


def test_nothing_comes_from_the_network(small):
    text = small.read_text(encoding="utf-8")
    tags = Tags(re.sub(r"<(script|style)[^>]*>.*?</\1>", "", text, flags=re.S)).tags
    for tag, attrs in tags:
        assert tag not in ("link", "iframe", "object", "embed")
        for name in ("src", "href"):
            assert not re.match(r"(https?:)?//", attrs.get(name) or "")
    assert "default-src 'none'" in text
    assert "http" not in re.sub(r"http-equiv|http://www\.w3\.org/2000/svg", "", text)


def test_names_are_shown_never_run(tmp_path):
    pages = [*pages_of(2, 2), page(EVIL, "<b>writer</b>", "1"), page("x.png", "<b>writer</b>", "2")]
    path = report(tmp_path, pages, name="<i>e", images=False, title="<u>t")
    text = path.read_text(encoding="utf-8")
    assert "<i>e" not in text
    assert text.count("“&lt;i&gt;e”") == 1
    assert "<u>t" not in text
    assert text.count("&lt;u&gt;t: 6 pages, ") == 2
    assert "<b>writer" not in text
    assert "<img src=x" not in text
    assert text.count("<script") == 2
    assert EVIL in [about["id"] for about in data_of(path)["pages"].values()]


def test_moved_images_are_said_and_do_not_break_the_report(tmp_path):
    pages = pages_of(3, 3)
    path = report(tmp_path, pages, images=False)
    assert 'id="missing">The images of 9 of the 9 pages' in path.read_text()
    for about in data_of(path)["pages"].values():
        assert "no such file" in about["missing"].lower()
    again = report(tmp_path, pages, images=True)
    assert 'id="missing"' not in again.read_text()


def thumbnails(pages, rows, side, max_pixels):
    return {row: thumbnail(part, side) for row, part in read_pages(pages, rows, max_pixels)}


def test_boxes_are_cropped(tmp_path):
    pages = [page("a.png", "w", str(i), box=(10 * i, 0, 10 * i + 10, 40)) for i in range(4)]
    pages.append(page("a.png", "w", "out", box=(100, 100, 120, 120)))
    planted(tmp_path / "e", pages, images=True)
    pictures = thumbnails(load_embeddings(tmp_path / "e"), range(5), 320, 10**6)
    assert [pictures[i]["size"] for i in range(4)] == [(10, 40)] * 4
    assert pictures[4] == {"missing": "box outside of the image"}


def test_thumbnails_are_bounded(tmp_path):
    e = planted(tmp_path / "e", pages_of(1, 2), images=True)
    small, large = (len(thumbnails(e, [0], side, 10**6)[0]["image"]) for side in (20, 320))
    assert small < large
    assert "missing" in thumbnails(e, [0], 320, 100)[0]


def test_large_collections_are_paged(tmp_path):
    path = report(tmp_path, pages_of(10, 3), images=False, queries_per_file=8, max_queries=20)
    names = ["report.html", "report_2.html", "report_3.html"]
    parts = [data_of(path.parent / name) for name in names]
    assert [len(part["sheets"]) for part in parts] == [8, 8, 4]
    aps = [sheet["ap"] for part in parts for sheet in part["sheets"]]
    assert aps == sorted(aps)
    assert "the hardest 20 of 30 queries" in path.read_text()
    where = {p["row"]: p["file"] for p in parts[0]["points"]}
    assert len(where) == 30
    for name, part in zip(names, parts):
        assert all(where[sheet["row"]] == name for sheet in part["sheets"])
    # Parts of an earlier, larger report do not stay.
    report(tmp_path, pages_of(10, 3), images=False)
    assert sorted(p.name for p in path.parent.glob("*.html")) == ["report.html"]


def test_a_few_megabytes_for_a_few_hundred_pages(tmp_path):
    path = report(tmp_path, pages_of(50, 4), map_pages=0)
    assert path.stat().st_size < 1_000_000


def test_map_is_of_the_collection(tmp_path):
    points = data_of(report(tmp_path, pages_of(6, 4), images=False))["points"]
    assert [p["row"] for p in points] == list(range(24))
    few = data_of(report(tmp_path, pages_of(6, 4), images=False, map_pages=5))["points"]
    assert [p["row"] for p in few] == [0, 5, 11, 17, 23]


def test_curve_and_spread_are_those_of_the_figures(small):
    head = small.read_text(encoding="utf-8").split("<main>")[0]
    bars = re.findall(r'<rect class="bar-ap"[^>]*/><text[^>]*>(\d*)</text>', head)
    aps = [sheet["ap"] for sheet in data_of(small)["sheets"] if "ap" in sheet]
    assert [int(n or 0) for n in bars] == np.histogram(aps, bins=10, range=(0, 1))[0].tolist()
    # What follows is of this line: the full one.
    assert re.findall(r'<polyline class="line (l\d)"', head) == ["l2"]
