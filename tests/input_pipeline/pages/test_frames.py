"""TIFF files of several images: each one in full resolution is a page, reduced copies never."""

import contextlib

import numpy as np
import pytest
from PIL import Image
from tiff_files import frame, write

from saghog_jax.configs import common
from saghog_jax.input_pipeline.errors import PageError, UserError
from saghog_jax.input_pipeline.pages import frames
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.input_pipeline.pages.sources import load_manifest
from saghog_jax.input_pipeline.regions.mask_images import names_below

MAX_PIXELS = 10**6
# Values of the tag NewSubfileType.
REDUCED, PAGE, MASK = {254: 1}, {254: 2}, {254: 4}


def leaf(grey, h=60, w=40):
    return np.full((h, w), grey, np.uint8)


def load(tmp_path, pages, **fields):
    data = common.data_config("test")
    data.cache, data.pages = str(tmp_path / "cache"), str(pages)
    data.update(fields)
    return load_manifest(data)


def paths_and_greys(manifest):
    return [
        (page.path, int(load_page(manifest.root / page.path, page.box, MAX_PIXELS)[0, 0, 0]))
        for page in manifest.pages
    ]


def test_each_image_of_a_file_is_a_page(tmp_path, capsys):
    write(tmp_path / "v.tif", *(frame(leaf(grey)) for grey in (10, 20, 30, 40)))
    Image.fromarray(leaf(50)).save(tmp_path / "single.tif")
    manifest = load(tmp_path, tmp_path)
    assert paths_and_greys(manifest) == [
        ("single.tif", 50),
        ("v.tif#frame=1", 10),
        ("v.tif#frame=2", 20),
        ("v.tif#frame=3", 30),
        ("v.tif#frame=4", 40),
    ]
    assert [page.page_id for page in manifest.pages] == [page.path for page in manifest.pages]
    assert manifest.pages[2].page == "v frame 2"
    assert manifest.pages[0].page == "single"
    shown = capsys.readouterr().out
    assert shown == "1 TIFF files hold several pages: 4 pages, named FILE#frame=NUMBER\n"


def test_frames_of_one_file_have_different_contents(tmp_path):
    """Masks, stores and embeddings are identified by the contents of their pages."""
    write(tmp_path / "v.tif", frame(leaf(10)), frame(leaf(20)))
    contents = load(tmp_path, tmp_path).contents()
    assert sorted(contents) == ["v.tif#frame=1", "v.tif#frame=2"]
    assert len(set(contents.values())) == 2
    assert all(len(value) == len("#read=2#frame=1") + 64 for value in contents.values())


def test_files_that_are_read_in_another_way_than_before_are_marked(tmp_path):
    """Their stores, masks and embeddings are made again; those of other files stay valid."""
    grey = Image.fromarray(leaf(10))
    Image.fromarray(leaf(10).astype(np.uint16)).save(tmp_path / "16.png")
    grey.convert("LA").save(tmp_path / "alpha.png")
    for name in ("8.png", "a.tif", "a.jpg"):
        grey.save(tmp_path / name)
    contents = load(tmp_path, tmp_path).contents()
    assert {name for name, value in contents.items() if value.endswith("#read=2")} == {
        "16.png",
        "a.tif",
        "alpha.png",
    }
    assert all(len(value.partition("#")[0]) == 64 for value in contents.values())


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("images", "expected"),
    [
        # A thumbnail first, with a tag or without.
        ([frame(leaf(1, 15, 10), REDUCED), frame(leaf(20))], {None: 20}),
        ([frame(leaf(1, 15, 10)), frame(leaf(20))], {None: 20}),
        ([frame(leaf(1, 15, 10), {255: 2}), frame(leaf(20))], {None: 20}),
        # A thumbnail whose sides were rounded.
        ([frame(leaf(1, 14, 9)), frame(leaf(20, 61, 40))], {None: 20}),
        # A pyramid and a transparency mask after the page.
        ([frame(leaf(20)), frame(leaf(1, 30, 20)), frame(leaf(1, 15, 10))], {None: 20}),
        ([frame(leaf(20)), frame(leaf(1), MASK)], {None: 20}),
        # Each page with a thumbnail before it: numbers are those of the file.
        (
            [frame(leaf(1, 15, 10)), frame(leaf(20)), frame(leaf(1, 15, 10)), frame(leaf(40))],
            {2: 20, 4: 40},
        ),
        # Pages of other sizes, and a small page that says it is one.
        (
            [frame(leaf(20)), frame(leaf(30, 50, 40)), frame(leaf(40, 30, 40))],
            {1: 20, 2: 30, 3: 40},
        ),
        ([frame(leaf(20)), frame(leaf(30, 30, 20), PAGE)], {1: 20, 2: 30}),
        # The page lies below its thumbnail.
        ([frame(leaf(1, 15, 10), REDUCED, inner=[frame(leaf(20))])], {None: 20}),
        # Nothing but reduced copies: the largest is all there is.
        ([frame(leaf(1, 15, 10), REDUCED), frame(leaf(20, 30, 20), REDUCED)], {None: 20}),
    ],
)
def test_reduced_copies_are_never_pages(tmp_path, images, expected, order):
    write(tmp_path / "v.tif", *images, order=order)
    names = {"v.tif" + (f"#frame={n}" if n else ""): grey for n, grey in expected.items()}
    assert dict(paths_and_greys(load(tmp_path, tmp_path))) == names


def test_left_out_copies_are_counted(tmp_path, capsys):
    write(tmp_path / "v.tif", frame(leaf(1, 15, 10)), frame(leaf(20)))
    load(tmp_path, tmp_path)
    assert capsys.readouterr().out.startswith("1 images in 1 TIFF files are left out: thumbnails")


def test_a_table_may_name_files_and_images(tmp_path):
    write(tmp_path / "v.tif", frame(leaf(10)), frame(leaf(20)))
    write(tmp_path / "t.tif", frame(leaf(1, 15, 10)), frame(leaf(30)))
    (tmp_path / "p.csv").write_text(
        "path,writer,page,x0,y0,x1,y1\nv.tif,A,12,,,,\nt.tif#frame=1,B,,,,,\nv.tif#frame=2,C,,1,2,9,9\n"
    )
    manifest = load(tmp_path, tmp_path / "p.csv")
    assert [(p.page_id, p.writer, p.page) for p in manifest.pages] == [
        ("v.tif#frame=1", "A", "12 frame 1"),
        ("v.tif#frame=2", "A", "12 frame 2"),
        ("t.tif#frame=1", "B", "t frame 1"),
        ("v.tif#frame=2#1,2,9,9", "C", "v frame 2"),
    ]
    assert [grey for _, grey in paths_and_greys(manifest)] == [10, 20, 1, 20]
    (tmp_path / "q.csv").write_text("path,x0,y0,x1,y1\nv.tif,1,2,9,9\n")
    with pytest.raises(UserError, match=r"holds 2 pages.*write 'v\.tif#frame=1' as the path"):
        load(tmp_path, tmp_path / "q.csv")
    (tmp_path / "q.csv").write_text("path\nv.tif\nv.tif#frame=2\n")
    with pytest.raises(UserError, match=r"'v\.tif#frame=2' is listed twice"):
        load(tmp_path, tmp_path / "q.csv")


def test_one_file_of_several_pages(tmp_path):
    write(tmp_path / "v.tif", frame(leaf(10)), frame(leaf(20)))
    assert len(load(tmp_path, tmp_path / "v.tif").pages) == 2


def test_images_that_are_not_there(tmp_path):
    write(tmp_path / "v.tif", frame(leaf(10)), frame(leaf(20)))
    Image.fromarray(leaf(10)).save(tmp_path / "a.png")
    for name in ("v.tif#frame=3", "a.png#frame=3"):
        with pytest.raises(PageError, match="none with the number 3"):
            load_page(tmp_path / name, None, MAX_PIXELS)


def test_the_limit_holds_for_each_image(tmp_path):
    write(tmp_path / "v.tif", frame(leaf(10, 20, 30)), frame(leaf(20, 60, 70)))
    assert load_page(tmp_path / "v.tif#frame=1", None, 1000).shape == (20, 30, 3)
    with pytest.raises(PageError, match="70 x 60 pixels are more than"):
        load_page(tmp_path / "v.tif#frame=2", None, 1000)


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_cut_file_is_a_page_that_cannot_be_read_or_fewer_pages(tmp_path, cut):
    path = write(tmp_path / "v.tif", frame(leaf(10)), frame(leaf(20)))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * cut // 40])
    for page in load(tmp_path, tmp_path).pages:
        with contextlib.suppress(PageError):
            load_page(tmp_path / page.path, None, MAX_PIXELS)


@pytest.mark.parametrize("magic", [b"II*\0", b"II+\0", b"MM\0*", b"MM\0+"])
def test_damaged_directories_never_end_the_program(tmp_path, magic):
    order = "<" if magic.startswith(b"II") else ">"
    deep = leaf(20).astype(np.uint16)
    images = (frame(leaf(10), order=order), frame(np.dstack([deep] * 3), None, order, True))
    path = write(tmp_path / "v.tif", *images, order=order)
    data = np.frombuffer(magic + path.read_bytes()[4:], np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(60):
        changed = data.copy()
        # The directories lie before the pixels of the next image and at the end.
        places = rng.choice(np.r_[4:16, len(leaf(1).ravel()) : len(leaf(1).ravel()) + 200], 6)
        changed[np.r_[places, rng.integers(len(data) - 250, len(data), 6)]] = rng.integers(
            0, 256, 12
        )
        path.write_bytes(changed.tobytes())
        for page in load(tmp_path, tmp_path).pages:
            with contextlib.suppress(PageError):
                load_page(tmp_path / page.path, None, MAX_PIXELS)


def test_directories_that_form_a_ring(tmp_path):
    path = write(tmp_path / "v.tif", frame(leaf(10)), frame(leaf(20)))
    data = bytearray(path.read_bytes())
    data[-4:] = data[4:8]
    path.write_bytes(data)
    assert len(load(tmp_path, tmp_path).pages) == 2


def test_turned_images(tmp_path):
    page = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    Image.fromarray(page).save(tmp_path / "a.png")
    for ending, expected in {
        "": page,
        "#rotate=90": np.rot90(page, -1),
        "#rotate=180": page[::-1, ::-1],
        "#rotate=270": np.rot90(page),
        "#rotate=!0": page[:, ::-1],
        "#rotate=!90": np.rot90(page[:, ::-1], -1),
        "#frame=1#rotate=180": page[::-1, ::-1],
    }.items():
        got = load_page(tmp_path / f"a.png{ending}", None, MAX_PIXELS)
        np.testing.assert_array_equal(got[..., 0], expected)
    box = load_page(tmp_path / "a.png#rotate=90", (0, 1, 2, 3), MAX_PIXELS)
    np.testing.assert_array_equal(box[..., 0], np.rot90(page, -1)[1:3])


def test_an_image_turned_by_a_few_degrees(tmp_path):
    """A dark square turned by 45 degrees: its corner is in the middle of the upper edge."""
    Image.fromarray(np.full((100, 100), 50, np.uint8)).save(tmp_path / "a.png")
    page = load_page(tmp_path / "a.png#rotate=45", None, MAX_PIXELS)[..., 0]
    assert page.shape == (141, 141)
    assert page[0, 0] == page[-1, -1] == 255
    assert (page < 100).mean() == pytest.approx(0.5, abs=0.02)
    assert page[5, 70] == page[70, 5] == 50


def test_names_of_masks_and_links(tmp_path):
    assert frames.stem("a/v.tif#frame=2") == "a/v-frame-2"
    assert frames.stem("a/v.w.tif") == "a/v.w"
    assert frames.stem("v.tif#rotate=!90") == "v-rotate-mirrored-90"
    assert frames.file_of(tmp_path / "v.tif#frame=2#rotate=90") == tmp_path / "v.tif"
    assert frames.parse("a#b.tif") == ("a#b.tif", None, False, 0)
    masks = {path.name for path in names_below(tmp_path, "v.tif#frame=2", (".png",))}
    assert "v-frame-2.png" in masks
    # The mask of the whole file belongs to no single page.
    assert not masks & {"v.png", "v.tif.png"}
