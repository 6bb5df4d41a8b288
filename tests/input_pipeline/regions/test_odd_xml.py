"""PAGE and ALTO files of which not all is in a region with an outline, or of another image."""

import numpy as np
import pytest
from PIL import ExifTags, Image
from test_region_files import ALTO, PAGE, drawn

from saghog_jax.configs import common
from saghog_jax.configs.regions import regions_config
from saghog_jax.input_pipeline.errors import PageError
from saghog_jax.input_pipeline.pages.images import orientation
from saghog_jax.input_pipeline.pages.sources import load_manifest
from saghog_jax.input_pipeline.regions.backends import Place, make_backend
from saghog_jax.input_pipeline.regions.masks import open_masks
from saghog_jax.input_pipeline.regions.page_mask import read_mask

SHAPE = 120, 200
BLANK = np.full((*SHAPE, 3), 255, np.uint8)
TOP, LOWER, LINES = (20, 10, 150, 50), (20, 60, 180, 110), ((25, 65, 170, 80), (25, 85, 170, 100))


def box(x0, y0, x1, y1):
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def union(*boxes):
    return np.any([drawn(box(*corners)) for corners in boxes], axis=0)


def coords(corners):
    return f'<Coords points="{" ".join(f"{x},{y}" for x, y in box(*corners))}"/>'


def sides(corners):
    x0, y0, x1, y1 = corners
    return f'HPOS="{x0}" VPOS="{y0}" WIDTH="{x1 - x0}" HEIGHT="{y1 - y0}"'


WHOLE = sides((0, 0, 200, 120))


def page_file(body, size='imageWidth="200" imageHeight="120"', image="b.png"):
    return (
        f'<PcGts xmlns="{PAGE.format("2013-07-15")}"><Page imageFilename="{image}" {size}>'
        f"{body}</Page></PcGts>"
    )


def alto_file(*bodies, size='WIDTH="200" HEIGHT="120"', space=WHOLE, image=""):
    pages = "".join(
        f"<Page {size}><PrintSpace {space}>{body}</PrintSpace></Page>" for body in bodies
    )
    source = f"<sourceImageInformation><fileName>{image}</fileName></sourceImageInformation>"
    return (
        f'<alto xmlns="{ALTO.format(4)}"><Description>{source}</Description>'
        f"<Layout>{pages}</Layout></alto>"
    )


def region(corners, inner="", kind="TextRegion"):
    return f"<{kind}>{coords(corners) if corners else ''}{inner}</{kind}>"


def block(corners, inner=""):
    return f"<TextBlock {sides(corners) if corners else ''}>{inner}</TextBlock>"


PAGE_LINES = "".join(region(line, kind="TextLine") for line in LINES)
ALTO_LINES = "".join(f"<TextLine {sides(line)}/>" for line in LINES)
WORDS = "".join(region(line, kind="Word") for line in LINES)


def find(folder, text, level="region", image=BLANK, name="b.png", path=None):
    """The result for a page with this XML file beside it."""
    regions = regions_config("xml")
    regions.xml.level = level
    (folder / "b.xml").write_text(text, encoding="utf-8")
    backend = make_backend(regions)
    source = backend.source(folder, name, ())
    return backend.find(image, Place(image.shape[:2], None, source, path))


def cell(corners, inner=""):
    return region(corners, inner, "TableCell")


@pytest.mark.parametrize(
    ("level", "text", "expected"),
    [
        # As Transkribus writes tables, then as OCR-D does.
        ("region", page_file(region(TOP) + region(LOWER, cell(LOWER, PAGE_LINES), "TableRegion")),
         union(TOP, LOWER)),
        ("region", page_file(region(TOP) + region(LOWER, region(LOWER, PAGE_LINES), "TableRegion")),
         union(TOP, LOWER)),
        # Cells say more than their table; a table without cells has its own outline.
        ("region", page_file(region((0, 0, 199, 119), cell(TOP) + cell(LOWER), "TableRegion")),
         union(TOP, LOWER)),
        ("region", page_file(region(LOWER, kind="TableRegion")), union(LOWER)),
        ("region", page_file(region(LOWER, cell(None), "TableRegion")), union(LOWER)),
        ("region", page_file(region(None, cell(None, PAGE_LINES), "TableRegion")), union(*LINES)),
        ("line", page_file(region(LOWER, cell(LOWER, PAGE_LINES), "TableRegion")), union(*LINES)),
        # As eScriptorium writes lines of no region.
        ("region", page_file(region(TOP) + region(None, PAGE_LINES)), union(TOP, *LINES)),
        ("region", alto_file(block(TOP) + block(None, ALTO_LINES)), union(TOP, *LINES)),
        ("region", alto_file(block(TOP) + block((0, 0, 0, 0), ALTO_LINES)), union(TOP, *LINES)),
        # Regions in a region without an outline, and lines whose words alone have one.
        ("region", page_file(region(None, region(TOP) + PAGE_LINES)), union(TOP, *LINES)),
        ("region", page_file(region(None, region(None, WORDS, "TextLine"))), union(*LINES)),
        ("line", page_file(region(TOP, region(None, WORDS, "TextLine"))), union(*LINES)),
        ("region", alto_file(f"<ComposedBlock>{block(TOP)}</ComposedBlock>"), union(TOP)),
    ],
)  # fmt: skip
def test_all_writing_with_an_outline_is_in_the_mask(tmp_path, level, text, expected):
    result = find(tmp_path, text, level)
    np.testing.assert_array_equal(result.mask, expected)
    assert "left_out" not in result.meta


@pytest.mark.parametrize(
    ("level", "text", "left_out", "expected"),
    [
        ("region", page_file(region(TOP) + 2 * region(None)),
         {"TextRegion without an outline": 2}, union(TOP)),
        ("region", page_file(region(None, PAGE_LINES + region(None, kind="TextLine"))),
         {"TextLine without an outline": 1}, union(*LINES)),
        ("line", page_file(region(TOP) + region(LOWER, PAGE_LINES)),
         {"TextRegion without a line": 1}, union(*LINES)),
        ("region", page_file(region(TOP) + region(None, cell(None), "TableRegion")),
         {"TableCell without an outline": 1}, union(TOP)),
        ("region", page_file(region(TOP) + region(None, kind="TableRegion")),
         {"TableRegion without an outline": 1}, union(TOP)),
        ("region", alto_file(block(TOP), block(LOWER), block(LOWER)),
         {"further Page": 2}, union(TOP)),
    ],
)  # fmt: skip
def test_what_is_left_out_is_counted(tmp_path, level, text, left_out, expected):
    result = find(tmp_path, text, level)
    np.testing.assert_array_equal(result.mask, expected)
    assert result.meta["left_out"] == left_out


def test_of_several_pages_the_one_with_the_proportions_of_the_image(tmp_path):
    text = alto_file(block(TOP), block(LOWER)).replace('HEIGHT="120"', 'HEIGHT="300"', 1)
    np.testing.assert_array_equal(find(tmp_path, text).mask, union(LOWER))


@pytest.mark.parametrize("size", ["", 'WIDTH="0" HEIGHT="0"', 'WIDTH="200"'])
def test_a_page_without_a_size_has_that_of_its_print_space(tmp_path, size):
    np.testing.assert_array_equal(find(tmp_path, alto_file(block(TOP), size=size)).mask, union(TOP))
    margin = f"<RightMargin {sides((180, 0, 200, 120))}/></Page>"
    text = alto_file(block(TOP), size=size, space=sides((20, 5, 180, 100)))
    text = text.replace("</Page>", margin)
    np.testing.assert_array_equal(find(tmp_path, text).mask, union(TOP))


def test_a_page_without_any_size_is_refused(tmp_path):
    with pytest.raises(PageError, match="no imageHeight .* PrintSpace has no size either"):
        find(tmp_path, alto_file(block(TOP), size="", space=""))


UPRIGHT = {
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
    5: lambda a: a.T, 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a.T, 2), 8: np.rot90,
}  # fmt: skip


class TestTurned:
    """Pages with an EXIF orientation; the stored image has strokes where TOP is."""

    def write(self, folder, how, strokes=True):
        stored = np.full(SHAPE, 240, np.uint8)
        if strokes:
            stored[14:48:4, 24:148] = 30
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = how
        Image.fromarray(stored).save(folder / "b.png", exif=exif)

    def mask(self, folder, text, backend="xml"):
        data, regions = common.data_config(""), regions_config(backend)
        data.pages, data.cache = str(folder), str(folder / "cache")
        # These pages have shapes in place of writing.
        data.polarity = "dark_on_light"
        regions.root, regions.workers = str(folder / "masks"), 1
        if backend == "xml":
            (folder / "b.xml").write_text(text)
        else:
            regions.masks.folder = str(folder.parent / f"{folder.name}-given")
        lines = []
        (mask,) = open_masks(load_manifest(data), 10**6, regions).ensure(lines.append)
        assert mask.status == "ok", mask.reason
        return read_mask(mask.file), "\n".join(lines)

    @pytest.mark.parametrize("how", range(1, 9))
    @pytest.mark.parametrize("strokes", [True, False])
    def test_xml_drawn_on_the_image_as_stored(self, tmp_path, how, strokes):
        self.write(tmp_path, how, strokes)
        mask, log = self.mask(tmp_path, page_file(region(TOP)))
        np.testing.assert_array_equal(mask, UPRIGHT[how](union(TOP)))
        assert ("turned by its EXIF orientation: 1 page," in log) == (how != 1)

    def test_the_orientation_is_that_of_the_image_in_its_file(self, tmp_path):
        frames = [Image.new("L", (20, 10), 200 + how) for how in (1, 3)]
        for frame, how in zip(frames, (1, 3), strict=True):
            frame.encoderinfo = {"tiffinfo": {274: how}}
        frames[0].save(
            tmp_path / "b.tif", save_all=True, append_images=frames[1:], tiffinfo={274: 1}
        )
        assert orientation(tmp_path / "b.tif#frame=1") == 1
        assert orientation(tmp_path / "b.tif#frame=2") == 3
        self.write(tmp_path, 6)
        assert orientation(tmp_path / "b.png") == 6
        assert orientation(tmp_path / "b.png#rotate=90") == 1
        assert orientation(tmp_path / "none.png") == 1

    @pytest.mark.parametrize("how", range(1, 9))
    def test_xml_drawn_on_the_upright_image(self, tmp_path, how):
        self.write(tmp_path, how)
        expected = UPRIGHT[how](union(TOP))
        (y0, *_, y1), (x0, *_, x1) = (np.flatnonzero(expected.any(axis=a)) for a in (1, 0))
        h, w = expected.shape
        text = page_file(region((x0, y0, x1, y1)), size=f'imageWidth="{w}" imageHeight="{h}"')
        mask, log = self.mask(tmp_path, text)
        np.testing.assert_array_equal(mask, expected)
        assert "EXIF" not in log

    @pytest.mark.parametrize("how", range(1, 9))
    @pytest.mark.parametrize("own", [False, True])
    def test_mask_images(self, tmp_path, how, own):
        """Drawn on the image as stored, without and with a copy of the EXIF orientation."""
        self.write(tmp_path, how)
        given = tmp_path.parent / f"{tmp_path.name}-given"
        given.mkdir()
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = how if own else 1
        drawn_by_hand = Image.fromarray(union(TOP).astype(np.uint8) * 255)
        drawn_by_hand.save(given / "b.png", exif=exif)
        mask, _ = self.mask(tmp_path, "", "masks")
        np.testing.assert_array_equal(mask, UPRIGHT[how](union(TOP)))


class TestNames:
    """`imageFilename` of PAGE and `fileName` of ALTO."""

    @pytest.fixture
    def volumes(self, tmp_path):
        for name in ("one/b.png", "one/c.jpg", "two/b.png"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            Image.fromarray(BLANK).save(tmp_path / name)
        return tmp_path

    def find(self, volumes, text):
        return find(volumes / "one", text, path=volumes / "one" / "b.png")

    @pytest.mark.parametrize(
        "image", ["two/b.png", "../two/b.png", "two\\b.tif", "C:\\scans\\two\\b.png",
                  "/data/two/b.jpg", "http://host/two/b.jpg", "c.jpg", "one/c.jpg", "c.tif"],
    )  # fmt: skip
    @pytest.mark.parametrize("make", [page_file, alto_file])
    def test_another_page_that_is_there_is_refused(self, volumes, image, make):
        body = region(TOP) if make is page_file else block(TOP)
        with pytest.raises(PageError, match="b.xml belongs to another image: it names "):
            self.find(volumes, make(body, image=image))

    @pytest.mark.parametrize(
        "image", ["b.png", "B.TIF", "one/b.jpg", "/elsewhere/one/b.png", "old_name/b.png",
                  "three\\b.png", ""],
    )  # fmt: skip
    @pytest.mark.parametrize("make", [page_file, alto_file])
    def test_this_page_under_an_older_name_is_read(self, volumes, image, make):
        result = self.find(volumes, make(region(TOP) + block(TOP), image=image))
        np.testing.assert_array_equal(result.mask, union(TOP))
        assert "names_image" not in result.meta

    def test_an_alternative_image_is_this_page(self, volumes):
        other = '<AlternativeImage filename="one/b.png"/>'
        result = self.find(volumes, page_file(other + region(TOP), image="two/b.png"))
        np.testing.assert_array_equal(result.mask, union(TOP))

    def test_a_name_that_is_nowhere_is_noted(self, volumes):
        result = self.find(volumes, page_file(region(TOP), image="x.png"))
        np.testing.assert_array_equal(result.mask, union(TOP))
        assert result.meta["names_image"] == "x.png"


def test_one_line_says_what_is_left_out(tmp_path):
    for name, body in (("a", region(TOP)), ("b", region(TOP) + 2 * region(None)),
                       ("c", region(TOP, PAGE_LINES) + region(None))):  # fmt: skip
        pixels = BLANK.copy()
        pixels[0, 0] = ord(name)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.xml").write_text(page_file(body, image=f"{name}.png"))
    data, regions = common.data_config(""), regions_config("xml")
    data.pages, data.cache = str(tmp_path), str(tmp_path / "cache")
    data.polarity = "dark_on_light"
    regions.root, regions.workers = str(tmp_path / "masks"), 1
    for _ in range(2):  # Made, then found again.
        lines = []
        open_masks(load_manifest(data), 10**6, regions).ensure(lines.append)
        told = [line for line in lines if "left out" in line]
        assert told == [
            "regions: left out: 3 x TextRegion without an outline; 2 pages, such as b.png"
        ]
