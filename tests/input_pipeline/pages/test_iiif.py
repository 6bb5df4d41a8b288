"""IIIF manifests, versions 2 and 3: images on disk and on a server of this machine, no others."""

import functools
import http.server
import json
import threading

import numpy as np
import pytest
from PIL import Image

from saghog_jax.configs import common
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.pages import iiif
from saghog_jax.input_pipeline.pages.iiif_canvases import label_text
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.input_pipeline.pages.sources import load_manifest


def image(path, grey=200):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((30, 40), grey, np.uint8)).save(path)


def version2(images):
    return {
        "@context": "http://iiif.io/api/presentation/2/context.json",
        "@id": "https://example.org/book/manifest",
        "sequences": [
            {
                "canvases": [
                    {
                        "@id": f"https://example.org/canvas/{i}",
                        "label": f"fol. {i}r",
                        "images": [{"resource": {"@id": name}}] if name else [],
                    }
                    for i, name in enumerate(images)
                ]
            }
        ],
    }


def version3(images):
    return {
        "@context": "http://iiif.io/api/presentation/3/context.json",
        "id": "https://example.org/book/manifest",
        "items": [
            {
                "id": f"https://example.org/canvas/{i}",
                "type": "Canvas",
                "label": {"none": [f"fol. {i}r"]},
                "items": [{"items": [{"body": {"id": name, "type": "Image"}}]}] if name else [],
            }
            for i, name in enumerate(images)
        ],
    }


def load(tmp_path, pages, **fields):
    data = common.data_config("test")
    data.cache = str(tmp_path / "cache")
    data.pages = str(pages)
    data.iiif.update(fields)
    return load_manifest(data)


@pytest.mark.parametrize("version", [version2, version3])
@pytest.mark.parametrize("where", ["beside", "below", "folder"])
def test_images_on_disk(tmp_path, version, where):
    names = {
        # Addresses of a static site, relative addresses, and addresses of an image server.
        "beside": ["https://example.org/img/a.png", "https://example.org/img/b%20c.png"],
        "below": ["scans/a.png", "scans/b%20c.png"],
        "folder": [
            "https://example.org/iiif/a/full/max/0/default.jpg",
            "https://example.org/iiif/x%2Fb%20c.png/full/full/0/native.jpg",
        ],
    }[where]
    folder = {"beside": tmp_path / "m", "below": tmp_path / "m" / "scans"}.get(
        where, tmp_path / "other"
    )
    image(folder / "a.png", 10)
    image(folder / "b c.png", 20)
    (tmp_path / "m").mkdir(exist_ok=True)
    (tmp_path / "m" / "book.json").write_text(json.dumps(version([names[0], "", names[1]])))
    images = str(folder) if where == "folder" else ""
    manifest = load(tmp_path, tmp_path / "m" / "book.json", images=images)
    assert [page.page for page in manifest.pages] == ["fol. 0r", "fol. 2r"]
    assert [page.writer for page in manifest.pages] == ["", ""]
    assert manifest.pages[1].extra == {
        "canvas": "https://example.org/canvas/2",
        "manifest": "https://example.org/book/manifest",
    }
    for page, grey in zip(manifest.pages, (10, 20)):
        assert load_page(manifest.root / page.path, None, 10_000)[0, 0, 0] == grey


@pytest.fixture
def server(tmp_path):
    """A folder that this machine serves; paths that begin with /away are redirected."""
    folder = tmp_path / "served"
    folder.mkdir()
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            if self.path.startswith("/away"):
                self.send_response(302)
                self.send_header("Location", "http://example.org/a.png")
                self.end_headers()
                return
            super().do_GET()

        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_address[1]}", requests
        httpd.shutdown()
        thread.join()


@pytest.mark.parametrize("version", [version2, version3])
def test_images_and_manifest_of_a_local_server(tmp_path, server, version):
    folder, address, requests = server
    image(folder / "a.png", 33)
    (folder / "book.json").write_text(json.dumps(version([f"{address}/a.png"])))
    for _ in range(2):
        manifest = load(tmp_path, f"{address}/book.json")
        (page,) = manifest.pages
        assert load_page(manifest.root / page.path, None, 10_000)[0, 0, 0] == 33
    # Fetched files are not requested again.
    assert requests == ["/book.json", "/a.png"]


@pytest.mark.parametrize("version", [version2, version3])
def test_a_server_cuts_and_turns_itself(tmp_path, server, version):
    folder, address, requests = server
    name = "x/0,0,400,300/40,/90/default.png"
    image(folder / name, 33)
    (tmp_path / "book.json").write_text(json.dumps(version([f"{address}/{name}"])))
    (page,) = load(tmp_path, tmp_path / "book.json").pages
    assert requests == [f"/{name}"]
    assert page.box is None
    assert page.path.endswith(".png")


def test_a_part_of_an_image_service(tmp_path, server):
    folder, address, requests = server
    image(folder / "x" / "full" / "max" / "0" / "default.png", 33)
    content = version3([""])
    selector = {"type": "ImageApiSelector", "region": "4,3,20,10"}
    body = {"type": "SpecificResource", "source": f"{address}/x/full/max/0/default.png"}
    content["items"][0]["items"] = [{"items": [{"body": body | {"selector": selector}}]}]
    (tmp_path / "book.json").write_text(json.dumps(content))
    (page,) = load(tmp_path, tmp_path / "book.json").pages
    assert page.box == (4, 3, 24, 13)
    body["source"] = f"{address}/y"
    content["items"][0]["items"][0]["items"][0]["body"] = body | {"selector": selector}
    (tmp_path / "book.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="cannot fetch"):
        load(tmp_path, tmp_path / "book.json")
    assert requests[-1] == "/y/full/max/0/default.jpg"


def test_nothing_comes_from_elsewhere(tmp_path, server, monkeypatch):
    folder, address, requests = server
    (tmp_path / "book.json").write_text(json.dumps(version3(["https://example.org/a.png"])))
    with pytest.raises(UserError, match=r"server is not one of data\.iiif\.hosts: localhost, 127"):
        load(tmp_path, tmp_path / "book.json")
    with pytest.raises(UserError, match=r"server is not one of data\.iiif\.hosts"):
        load(tmp_path, "https://example.org/manifest.json")
    with pytest.raises(UserError, match="hosts: none"):
        load(tmp_path, f"{address}/book.json", hosts=())
    assert requests == []
    (tmp_path / "book.json").write_text(json.dumps(version3([f"{address}/away/a.png"])))
    with pytest.raises(UserError, match="cannot fetch"):
        load(tmp_path, tmp_path / "book.json")
    (tmp_path / "book.json").write_text(json.dumps(version3([f"{address}/none.png"])))
    with pytest.raises(UserError, match=r"cannot fetch .*none\.png"):
        load(tmp_path, tmp_path / "book.json")
    image(folder / "large.png")
    monkeypatch.setattr(iiif, "_MAX_IMAGE", 10)
    (tmp_path / "book.json").write_text(json.dumps(version3([f"{address}/large.png"])))
    with pytest.raises(UserError, match="sends more than"):
        load(tmp_path, tmp_path / "book.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "not a IIIF Presentation manifest"),
        ('{"pages": []}', "neither `items`"),
        ('{"items": []}', "no canvas with an image"),
        ('{"items": [{"items": [{"items": [{}]}]}]}', "does not follow the IIIF format"),
        ('{"sequences": [{"canvases": [{"images": [{}]}]}]}', "does not follow the IIIF format"),
    ],
)
def test_broken_manifests(tmp_path, content, message):
    (tmp_path / "book.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load(tmp_path, tmp_path / "book.json")
    with pytest.raises(UserError, match="cannot read"):
        load(tmp_path, tmp_path / "none.json")


def test_labels_in_every_form(tmp_path):
    for label, text in [
        ("1r", "1r"),
        ({"de": ["Blatt 1", "x"], "en": ["fol. 1"]}, "Blatt 1"),
        ([{"@value": "1 v", "@language": "la"}], "1 v"),
        (None, ""),
        ({}, ""),
    ]:
        assert label_text(label) == text


def test_two_canvases_of_one_image_are_one_page_and_a_choice_is_its_first(tmp_path):
    image(tmp_path / "a.png")
    content = version3(["a.png", "a.png"])
    body = {"type": "Choice", "items": [{"id": "a.png"}, {"id": "b.png"}]}
    content["items"][0]["items"][0]["items"][0]["body"] = body
    (tmp_path / "book.json").write_text(json.dumps(content))
    assert [page.path for page in load(tmp_path, tmp_path / "book.json").pages] == ["a.png"]
