"""IIIF canvases that show a part of an image, a turned image, several images, or none."""

import json

import numpy as np
import pytest
from PIL import Image

from saghog_jax.configs import common
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.input_pipeline.pages.sources import load_manifest

SERVER = "https://images.example.org/iiif"
WIDTH, HEIGHT = 80, 60


@pytest.fixture
def opening(tmp_path):
    """An image with another value in every pixel column and row, so that parts are recognised."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.dstack([x, y, np.full_like(x, 200)]).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "opening.png")
    return pixels


def whole(name, region="full", rotation="0", size="full", **members):
    return {
        "id": f"{SERVER}/{name}/{region}/{size}/{rotation}/default.jpg",
        "type": "Image",
        **members,
    }


def part(source, **selector):
    selector = {"type": "ImageApiSelector", **selector}
    return {"type": "SpecificResource", "source": source, "selector": selector}


def version3(*canvases):
    """Each canvas: a list of (body, target after #, stylesheet)."""
    items = []
    for number, paintings in enumerate(canvases):
        name = f"https://example.org/c/{number}"
        annotations = [
            {
                "type": "Annotation",
                "motivation": "painting",
                "body": body,
                "target": name + target,
                **({"stylesheet": {"type": "CssStylesheet", "value": css}} if css else {}),
            }
            for body, target, css in paintings
        ]
        items.append(
            {
                "id": name,
                "type": "Canvas",
                "label": {"none": [f"f. {number}"]},
                "width": 1000,
                "height": 750,
                "items": [{"type": "AnnotationPage", "items": annotations}],
            }
        )
    return {"id": "https://example.org/m", "type": "Manifest", "items": items}


def version2(*canvases):
    """The same canvases in the words of version 2."""

    def old(thing):
        if not isinstance(thing, dict):
            return thing
        names = {"id": "@id", "type": "@type", "source": "full", "styleClass": "style"}
        types = {"Image": "dctypes:Image", "SpecificResource": "oa:SpecificResource"}
        types["ImageApiSelector"] = "iiif:ImageApiSelector"
        return {
            names.get(key, key): types.get(value, value) if key == "type" else old(value)
            for key, value in thing.items()
        }

    found = [
        {
            "@id": f"https://example.org/c/{number}",
            "@type": "sc:Canvas",
            "label": f"f. {number}",
            "width": 1000,
            "height": 750,
            "images": [
                {
                    "@type": "oa:Annotation",
                    "motivation": "sc:painting",
                    "resource": old(body),
                    "on": f"https://example.org/c/{number}{target}",
                    **({"stylesheet": {"@type": ["oa:CssStyle"], "chars": css}} if css else {}),
                }
                for body, target, css in paintings
            ],
        }
        for number, paintings in enumerate(canvases)
    ]
    return {
        "@id": "https://example.org/m",
        "@type": "sc:Manifest",
        "sequences": [{"canvases": found}],
    }


both = pytest.mark.parametrize("version", [version2, version3])


def load(tmp_path, content, encoding="utf-8", **fields):
    (tmp_path / "m.json").write_text(json.dumps(content), encoding=encoding)
    data = common.data_config("test")
    data.cache, data.pages = str(tmp_path / "cache"), str(tmp_path / "m.json")
    data.iiif.update(fields)
    return load_manifest(data)


def pixels_of(manifest):
    return [load_page(manifest.root / page.path, page.box, 10**6) for page in manifest.pages]


def shown(tmp_path, version, body, css=""):
    """The page of a manifest of one canvas."""
    manifest = load(tmp_path, version([(body, "", css)]))
    (pixels,) = pixels_of(manifest)
    return manifest.pages[0], pixels


@both
@pytest.mark.parametrize(
    ("body", "box"),
    [
        (part(whole("opening"), region="10,5,30,40"), (10, 5, 40, 45)),
        (part(whole("opening"), region="pct:50,0,50,100"), (40, 0, 80, 60)),
        (part(whole("opening"), region="square"), (10, 0, 70, 60)),
        (part(f"{SERVER}/opening", region="10,5,30,40"), (10, 5, 40, 45)),
        (whole("opening", "10,5,30,40"), (10, 5, 40, 45)),
        (whole("opening", "pct:0,0,25,50"), (0, 0, 20, 30)),
        (whole("opening") | {"id": "opening.png#xywh=10,5,30,40"}, (10, 5, 40, 45)),
        (whole("opening") | {"id": "opening.png#xywh=pixel:10,5,30,40"}, (10, 5, 40, 45)),
        (whole("opening") | {"id": "opening.png#xywh=percent:50,0,50,100"}, (40, 0, 80, 60)),
        (
            {
                "type": "SpecificResource",
                "source": whole("opening"),
                "selector": {"type": "FragmentSelector", "value": "xywh=10,5,30,40"},
            },
            (10, 5, 40, 45),
        ),
        # What leaves the image is cut; the whole image is no box.
        (whole("opening", "60,30,100,100"), (60, 30, 80, 60)),
        (whole("opening", "0,0,80,60"), None),
        (part(whole("opening"), region="full"), None),
        # The file on disk is smaller or larger than what the manifest speaks of.
        (part(whole("opening", width=160, height=120), region="20,10,60,80"), (10, 5, 40, 45)),
        (
            part(
                whole("opening", size="40,", width=40, height=30)
                | {"service": [{"id": f"{SERVER}/opening", "width": 800, "height": 600}]},
                region="100,50,300,400",
            ),
            (10, 5, 40, 45),
        ),
        (
            part(whole("opening", size="40,", width=40, height=30), region="10,5,30,40"),
            (10, 5, 40, 45),
        ),
    ],
)
def test_regions_are_boxes(tmp_path, opening, version, body, box):
    page, pixels = shown(tmp_path, version, body)
    assert page.path == "opening.png"
    assert page.box == box
    x0, y0, x1, y1 = box or (0, 0, WIDTH, HEIGHT)
    np.testing.assert_array_equal(pixels, opening[y0:y1, x0:x1])
    assert page.extra.get("place", "0,0,1000,750") == "0,0,1000,750"


@both
def test_two_canvases_of_one_opening(tmp_path, opening, version):
    bodies = [part(whole("opening"), region=f"{x},0,40,60") for x in (0, 40)]
    manifest = load(tmp_path, version(*([(body, "", "")] for body in bodies)))
    assert [page.page_id for page in manifest.pages] == [
        "opening.png#0,0,40,60",
        "opening.png#40,0,80,60",
    ]
    assert [page.page for page in manifest.pages] == ["f. 0", "f. 1"]


CSS = ".turned { transform-origin: top left; transform: rotate(90deg) translate(0, -100%); }"


@both
@pytest.mark.parametrize(
    ("body", "css", "expected"),
    [
        (whole("opening", rotation="90"), "", lambda page: np.rot90(page, -1)),
        (whole("opening", rotation="180"), "", lambda page: page[::-1, ::-1]),
        (whole("opening", rotation="!0"), "", lambda page: page[:, ::-1]),
        (part(whole("opening"), rotation="270"), "", np.rot90),
        (part(whole("opening"), rotation="!90"), "", lambda page: np.rot90(page[:, ::-1], -1)),
        (
            {"type": "SpecificResource", "source": whole("opening"), "styleClass": "turned"},
            CSS,
            lambda page: np.rot90(page, -1),
        ),
        (
            {"type": "SpecificResource", "source": whole("opening"), "styleClass": "other"},
            CSS,
            lambda page: page,
        ),
        # A region is cut first and turned then.
        (
            part(whole("opening"), region="10,5,30,20", rotation="90"),
            "",
            lambda page: np.rot90(page[5:25, 10:40], -1),
        ),
        (
            whole("opening", "10,5,30,20", "!270"),
            "",
            lambda page: np.rot90(page[5:25, 10:40][:, ::-1]),
        ),
    ],
)
def test_rotation_is_applied(tmp_path, opening, version, body, css, expected):
    _, pixels = shown(tmp_path, version, body, css)
    np.testing.assert_array_equal(pixels, expected(opening))


@both
def test_a_rotation_by_a_few_degrees(tmp_path, opening, version, capsys):
    page, pixels = shown(tmp_path, version, whole("opening", rotation="5"))
    assert page.path == "opening.png#rotate=5"
    assert pixels.shape[0] > HEIGHT
    assert pixels.shape[1] > WIDTH
    both_of_it = whole("opening", "10,5,30,20", "5")
    load(tmp_path, version([(both_of_it, "", "")], [(whole("opening"), "", "")]))
    assert "  f. 0: a region that is turned by 5 degrees\n" in capsys.readouterr().out


@both
def test_a_canvas_of_several_images(tmp_path, opening, version, capsys):
    Image.new("L", (9, 9)).save(tmp_path / "initial.png")
    places = ("#xywh=0,0,1000,750", "#xywh=100,50,300,200")
    paintings = [(whole(n), place, "") for n, place in zip(("opening", "initial"), places)]
    manifest = load(tmp_path, version(paintings))
    assert [(page.path, page.page, page.extra["place"]) for page in manifest.pages] == [
        ("opening.png", "f. 0", "0,0,1000,750"),
        ("initial.png", "f. 0", "100,50,300,200"),
    ]
    assert (
        "1 canvases show several images; each of the 2 images is a page" in capsys.readouterr().out
    )


def test_a_body_of_several_images_and_a_target_with_a_selector(tmp_path, opening):
    Image.new("L", (9, 9)).save(tmp_path / "b.png")
    content = version3([([whole("opening"), whole("b")], "", "")])
    annotation = content["items"][0]["items"][0]["items"][0]
    annotation["target"] = {
        "type": "SpecificResource",
        "source": "https://example.org/c/0",
        "selector": {"type": "FragmentSelector", "value": "xywh=percent:0,0,50,50"},
    }
    pages = load(tmp_path, content).pages
    assert [page.extra["place"] for page in pages] == ["percent:0,0,50,50"] * 2


@both
def test_images_that_are_not_there_never_become_default_jpg(tmp_path, opening, version, capsys):
    Image.new("L", (9, 9)).save(tmp_path / "default.jpg")
    Image.new("L", (9, 9)).save(tmp_path / "full.jpg")
    gone = [[(whole(f"gone{n}"), "", "")] for n in range(3)]
    with pytest.raises(UserError, match=r"no canvas with an image that can be used: .*gone0"):
        load(tmp_path, version(*gone))
    manifest = load(tmp_path, version(*gone, [(whole("opening"), "", "")], []))
    assert [page.path for page in manifest.pages] == ["opening.png"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("m.json: 4 images or canvases are left out:")
    assert [line.split(":")[0] for line in lines[1:]] == ["  f. 0", "  f. 1", "  f. 2", "  f. 4"]
    assert lines[4] == "  f. 4: no image"


@both
def test_one_name_of_several_images(tmp_path, opening, version, capsys):
    """Folders in the addresses tell them apart, where the disk has them too."""
    names = ["volume1/1.jpg", "volume2/1.jpg"]
    canvases = [
        [({"id": f"https://example.org/{name}", "type": "Image"}, "", "")] for name in names
    ]
    for name, value in (("1.jpg", 0), ("volume2/1.jpg", 99)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (9, 9), value).save(tmp_path / name)
    manifest = load(tmp_path, version(*canvases))
    assert [page.path for page in manifest.pages] == ["1.jpg", "volume2/1.jpg"]
    (tmp_path / "volume2" / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"'1\.jpg' is the name of several images"):
        load(tmp_path, version(*canvases))


@both
@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("https://example.org/x.jpg", "x.jp2"),
        ("https://example.org/x.jpg", "X.TIF"),
        (f"{SERVER}/x.jp2/full/full/0/default.jpg", "x.jpg"),
        (f"{SERVER}/x/full/max/0/default.jpg", "x.jp2"),
        (f"{SERVER}/ms.12/full/max/0/default.jpg", "ms.12.jp2"),
        (f"{SERVER}/a%2Fx.tif/full/max/0/default.jpg", "a/x.jp2"),
        (f"{SERVER}/x/full/max/0/default.jpg", "iiif/x/full/max/0/default.jpg"),
    ],
)
def test_files_of_other_formats(tmp_path, version, address, file):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (9, 9), 77).save(tmp_path / file)
    manifest = load(tmp_path, version([({"id": address, "type": "Image"}, "", "")]))
    assert [page.path for page in manifest.pages] == [file]


@both
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks(tmp_path, opening, version, encoding):
    assert len(load(tmp_path, version([(whole("opening"), "", "")]), encoding)) == 1


@both
def test_what_is_no_image_is_left_out(tmp_path, opening, version, capsys):
    kinds = {"Sound": "a.mp3", "Text": "a.txt"}
    canvases = [
        [({"id": f"https://example.org/{name}", "type": kind}, "", "")]
        for kind, name in kinds.items()
    ]
    outside = [(whole("opening", "80,0,10,10"), "", "")]
    skewed = [(part(whole("opening", width=50, height=100), region="0,0,9,9"), "", "")]
    again = [(whole("opening"), "", "")]
    manifest = load(tmp_path, version(*canvases, outside, skewed, again, again))
    assert [page.page for page in manifest.pages] == ["f. 4"]
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  f. 0: no image, but of the type Sound",
        "  f. 1: no image, but of the type Text",
        "  f. 2: the region 80,0,10,10 does not lie in the image of 80 x 60 pixels",
        "  f. 3: the image has 80 x 60 pixels; the manifest states other proportions, 50 x 100",
        "  f. 5: shows the same image as 'f. 4'",
    ]


def test_annotations_that_paint_nothing(tmp_path, opening):
    content = version3([(whole("opening"), "", "")])
    page = content["items"][0]["items"][0]
    page["items"].append({"motivation": ["commenting"], "body": {"type": "TextualBody"}})
    assert len(load(tmp_path, content)) == 1


def test_regions_of_an_upright_image(tmp_path, opening):
    """Orientation 6 in the file: regions refer to the image as people see it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(opening).save(tmp_path / "side.png", exif=exif)
    page, pixels = shown(tmp_path, version3, whole("side", "5,10,40,30"))
    assert page.box == (5, 10, 45, 40)
    np.testing.assert_array_equal(pixels, np.rot90(opening, -1)[10:40, 5:45])


def test_a_collection_is_told_what_it_is(tmp_path):
    with pytest.raises(UserError, match="is a IIIF collection; give one of the manifests"):
        load(tmp_path, {"type": "Collection", "items": [{"type": "Manifest", "id": "x"}]})
