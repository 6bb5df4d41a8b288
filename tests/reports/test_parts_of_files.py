"""Reports of pages that are one image of a file, or the part that a IIIF canvas shows."""

import json

import numpy as np
from planted import page, planted
from report_helpers import data_of
from tiff_files import frame, write

from saghog_jax import retrieve
from saghog_jax.configs import retrieve as retrieve_config


def run(tmp_path, pages):
    embeddings = planted(tmp_path / "e", pages)
    config = retrieve_config.get_config()
    config.embeddings, config.bootstrap, config.annotations = str(tmp_path / "e"), 50, True
    retrieve.run(config, tmp_path / "out")
    return embeddings


def test_links_lead_to_the_file_and_pictures_show_the_image(tmp_path):
    (tmp_path / "pages").mkdir()
    leaves = [frame(np.full((40, 60), grey, np.uint8)) for grey in (10, 200)]
    write(tmp_path / "pages" / "v.tif", *leaves)
    pages = [page(f"v.tif#frame={n}", "w", str(n)) for n in (1, 2)]
    embeddings = run(tmp_path, pages)
    described = data_of(tmp_path / "out" / "report.html")["pages"].values()
    assert {one["id"] for one in described} == {"v.tif#frame=1", "v.tif#frame=2"}
    assert {one["href"] for one in described} == {"../pages/v.tif"}
    assert len({one["image"] for one in described}) == 2
    text = (tmp_path / "out" / "annotations.json").read_text()
    assert "../pages/v.tif" in text
    assert "frame%3D" not in text
    assert embeddings.image(0).name == "v.tif#frame=1"


def test_annotations_lie_where_the_canvas_shows_the_page(tmp_path):
    """The box refers to the image, the place to the canvas."""
    places = ("0,0,1000,750", "100,50,300,200", "")
    pages = [
        page("a.png", "w", str(n), box=(n, 0, 9, 9), extra={"canvas": f"c:{n}", "place": place})
        for n, place in enumerate(places)
    ]
    run(tmp_path, pages)
    content = json.loads((tmp_path / "out" / "annotations.json").read_text())
    sources = {
        target["source"]: target["selector"]["value"] if "selector" in target else ""
        for target in (
            {"source": item["target"]} if isinstance(item["target"], str) else item["target"]
            for item in content["items"]
        )
    }
    assert sources == {"c:0": "xywh=0,0,1000,750", "c:1": "xywh=100,50,300,200", "c:2": ""}
