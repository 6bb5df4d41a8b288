"""Backends that read masks from files: images, PAGE and ALTO with the namespaces in use."""

import unicodedata

import cv2
import numpy as np
import pytest
from PIL import Image

from saghog_jax.configs.common import data_config
from saghog_jax.configs.regions import regions_config
from saghog_jax.input_pipeline.errors import PageError, UserError
from saghog_jax.input_pipeline.pages.sources import load_manifest
from saghog_jax.input_pipeline.regions.backends import Place, make_backend
from saghog_jax.input_pipeline.regions.masks import open_masks

SHAPE = 120, 200
IMAGE = np.full((*SHAPE, 3), 255, np.uint8)
PAGE = "http://schema.primaresearch.org/PAGE/gts/pagecontent/{}"
ALTO = "http://www.loc.gov/standards/alto/ns-v{}#"


def page_xml(version="2019-07-15", size=(120, 200), outline='<Coords points="20,30 100,30 60,90"/>',
             namespace=PAGE, line='<Coords points="30,35 80,35 60,60"/>'):  # fmt: skip
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><PcGts xmlns="{namespace.format(version)}">'
        f'<Metadata/><Page imageFilename="b.jpg" imageWidth="{size[1]}" imageHeight="{size[0]}">'
        f'<ImageRegion><Coords points="0,0 199,0 199,119"/></ImageRegion>'
        f"<TextRegion>{outline}<TextLine>{line}</TextLine></TextRegion></Page></PcGts>"
    )


def alto_xml(version=4, size=(120, 200), block="", shape='POINTS="20,30 100,30 60,90"'):
    inner = f"<Shape><Polygon {shape}/></Shape>" if shape else ""
    return (
        f'<alto xmlns="{ALTO.format(version)}"><Layout><Page WIDTH="{size[1]}" HEIGHT="{size[0]}">'
        f'<PrintSpace HPOS="0" VPOS="0" WIDTH="200" HEIGHT="120"><TextBlock {block}>{inner}'
        '<TextLine HPOS="30" VPOS="35" WIDTH="50" HEIGHT="20"><Shape><Polygon POINTS="30 35 80 35'
        ' 60 60"/></Shape></TextLine></TextBlock></PrintSpace></Page></Layout></alto>'
    )


def drawn(points, shape=SHAPE):
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.array(points, np.int32)], 1)
    return mask > 0


REGION = drawn([(20, 30), (100, 30), (60, 90)])
LINE = drawn([(30, 35), (80, 35), (60, 60)])


def xml(folder, text, level="region", box=None, shape=SHAPE):
    """The result of the backend with this file for the page a/b.jpg."""
    regions = regions_config("xml")
    regions.xml.folder, regions.xml.level = str(folder), level
    (folder / "a").mkdir(exist_ok=True)
    (folder / "a" / "b.xml").write_text(text, encoding="utf-8")
    backend = make_backend(regions)
    source = backend.source(folder / "elsewhere", "a/b.jpg")
    assert source == folder / "a" / "b.xml"
    return backend.find(IMAGE, Place(shape, box, source))


class TestXml:
    @pytest.mark.parametrize(
        "version", ["2010-03-19", "2013-07-15", "2016-07-15", "2017-07-15", "2018-07-15",
                    "2019-07-15"],
    )  # fmt: skip
    def test_page_of_every_version(self, tmp_path, version):
        result = xml(tmp_path, page_xml(version))
        np.testing.assert_array_equal(result.mask, REGION)
        assert result.meta == {"format": "PcGts", "polygons": 1, "without_polygon": 0}

    @pytest.mark.parametrize("version", [2, 3, 4])
    def test_alto_of_every_version(self, tmp_path, version):
        np.testing.assert_array_equal(xml(tmp_path, alto_xml(version)).mask, REGION)

    def test_without_a_namespace_and_with_point_elements(self, tmp_path):
        text = page_xml(namespace="").replace(' xmlns=""', "")
        np.testing.assert_array_equal(xml(tmp_path, text).mask, REGION)
        points = "".join(f'<Point x="{x}" y="{y}"/>' for x, y in ((20, 30), (100, 30), (60, 90)))
        text = page_xml("2010-03-19", outline=f"<Coords>{points}</Coords>")
        np.testing.assert_array_equal(xml(tmp_path, text).mask, REGION)

    @pytest.mark.parametrize("text", [page_xml(), alto_xml()])
    def test_the_level_says_whose_polygons(self, tmp_path, text):
        np.testing.assert_array_equal(xml(tmp_path, text, "line").mask, LINE)
        assert (LINE != REGION).any()

    @pytest.mark.parametrize("make", [page_xml, alto_xml])
    def test_another_resolution_is_scaled(self, tmp_path, make):
        result = xml(tmp_path, make(size=(60, 100)), shape=(120, 200))
        expected = drawn([(40, 60), (200, 60), (120, 180)])
        np.testing.assert_array_equal(result.mask, expected)

    @pytest.mark.parametrize("make", [page_xml, alto_xml])
    def test_other_proportions_are_refused(self, tmp_path, make):
        with pytest.raises(
            PageError, match="has 200 x 200 pixels; the page has other proportions, 200 x 120"
        ):
            xml(tmp_path, make(size=(200, 200)))

    def test_a_box_is_that_part(self, tmp_path):
        result = xml(tmp_path, page_xml(), box=(50, 20, 120, 80))
        np.testing.assert_array_equal(result.mask, REGION[20:80, 50:120])

    def test_rectangles_of_alto_without_polygons(self, tmp_path):
        block = 'HPOS="10" VPOS="20" WIDTH="30" HEIGHT="40"'
        result = xml(tmp_path, alto_xml(block=block, shape=""))
        np.testing.assert_array_equal(result.mask, drawn([(10, 20), (40, 20), (40, 60), (10, 60)]))

    @pytest.mark.parametrize(
        "text",
        [page_xml(outline="", line=""), page_xml(outline="", line='<Coords points="3,4"/>'),
         alto_xml(shape="").replace("HPOS", "X").replace("POINTS", "P")],
    )  # fmt: skip
    def test_a_missing_polygon_is_counted(self, tmp_path, text):
        result = xml(tmp_path, text)
        assert not result.mask.any()
        assert (result.meta["polygons"], result.meta["without_polygon"]) == (0, 1)
        assert result.meta["left_out"] == {"TextLine without an outline": 1}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("<alto", "b.xml is not XML"),
            ("<html/>", "neither PAGE nor ALTO; its root element is 'html'"),
            ('<PcGts xmlns="x"/>', "has no element Page"),
            (page_xml(size=("x", 1)), "no imageHeight and imageWidth"),
            (page_xml(size=(0, 1)), 'above 0, but imageHeight="0" imageWidth="1"'),
            (page_xml(outline='<Coords points="1,2 a,3"/>'), "not coordinates: '1,2 a,3'"),
            (page_xml(outline='<Coords points="1,2 3"/>'), "not coordinates: '1,2 3'"),
            (page_xml(outline='<Coords points="1,2 nan,3"/>'), "not coordinates"),
            ('<!DOCTYPE PcGts [<!ENTITY a "b">]><PcGts>&a;</PcGts>', "has a document type"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_said(self, tmp_path, text, message):
        with pytest.raises(PageError, match=message):
            xml(tmp_path, text)

    @pytest.mark.parametrize("name", ["b.xml", "b.jpg.xml", "page/b.xml", "alto/b.xml"])
    def test_files_beside_the_page(self, tmp_path, name):
        backend = make_backend(regions_config("xml"))
        assert backend.source(tmp_path, "a/b.jpg") is None
        file = tmp_path / "a" / name
        file.parent.mkdir(parents=True)
        file.write_text(page_xml())
        assert backend.source(tmp_path, "a/b.jpg") == file

    def test_no_file_and_unknown_fields(self, tmp_path):
        regions = regions_config("xml")
        with pytest.raises(PageError, match="no PAGE or ALTO file has the name of this page"):
            make_backend(regions).find(IMAGE, Place(SHAPE, None, None))
        regions.xml.level = "word"
        with pytest.raises(
            UserError, match="unknown regions.xml.level 'word', known: region, line"
        ):
            make_backend(regions)
        regions.xml.level, regions.xml.folder = "line", str(tmp_path / "none")
        with pytest.raises(UserError, match="regions.xml.folder=.*none' is not a folder"):
            make_backend(regions)


class TestMasks:
    def find(self, folder, mask, box=None, name="b.png"):
        regions = regions_config("masks")
        regions.masks.folder = str(folder)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), mask)
        backend = make_backend(regions)
        source = backend.source(folder, "a/b.jpg")
        assert source == folder / name
        return backend.find(IMAGE, Place(SHAPE, box, source)).mask

    @pytest.mark.parametrize("name", ["b.png", "a/b.png", "a/b.jpg.png", "b.tif"])
    def test_it_is_found_by_name_and_taken_as_it_is(self, tmp_path, name):
        mask = self.find(tmp_path, REGION.astype(np.uint8) * 255, name=name)
        np.testing.assert_array_equal(mask, REGION)

    def test_zeros_and_ones_are_a_mask_too(self, tmp_path):
        np.testing.assert_array_equal(self.find(tmp_path, REGION.astype(np.uint8)), REGION)
        assert not self.find(tmp_path, np.zeros(SHAPE, np.uint8)).any()

    def test_sizes(self, tmp_path):
        small = np.zeros((60, 100), np.uint8)
        small[10:20, 30:50] = 255
        expected = np.zeros(SHAPE, bool)
        expected[20:40, 60:100] = True
        np.testing.assert_array_equal(self.find(tmp_path, small), expected)
        box = 50, 10, 90, 50
        np.testing.assert_array_equal(self.find(tmp_path, small, box), expected[10:50, 50:90])
        with pytest.raises(
            PageError, match="the mask b.png has 100 x 100 pixels; the page has other proportions"
        ):
            self.find(tmp_path, np.zeros((100, 100), np.uint8))

    def test_no_mask_no_image_no_folder(self, tmp_path):
        regions = regions_config("masks")
        with pytest.raises(UserError, match="regions.masks.folder='' is not a folder"):
            make_backend(regions)
        regions.masks.folder = str(tmp_path)
        backend = make_backend(regions)
        assert backend.source(tmp_path, "../a/b.jpg") is None
        with pytest.raises(PageError, match="regions.masks.folder has no mask for this page"):
            backend.find(IMAGE, Place(SHAPE, None, None))
        (tmp_path / "b.png").write_text("no image")
        with pytest.raises(PageError, match="the mask b.png: not an image"):
            backend.find(IMAGE, Place(SHAPE, None, tmp_path / "b.png"))


class TestNamesakes:
    """The same file name in several folders, and files of masks or XML in one folder."""

    PAGES = ("a/p1.jpg", "b/p1.jpg", "b/p2.jpg", "c/Bébé.jpg")

    @pytest.fixture(params=["masks", "xml"])
    def kind(self, request):
        return request.param

    def sources(self, tmp_path, kind, names, split=""):
        """The files that the pages get, by page."""
        scans, files = tmp_path / "scans", tmp_path / "files"
        suffix = ".png" if kind == "masks" else ".xml"
        for name in names:
            file = files / f"{name}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            if kind == "masks":
                cv2.imencode(".png", np.full(SHAPE, 255, np.uint8))[1].tofile(file)
            else:
                file.write_text(page_xml())
        rows = ["path,split"]
        for path in self.PAGES:
            (scans / path).parent.mkdir(parents=True, exist_ok=True)
            cv2.imencode(".jpg", IMAGE)[1].tofile(scans / path)
            rows.append(f"{path},{'test' if path.startswith('b') else 'train'}")
        (scans / "manifest.csv").write_text("\n".join(rows))
        data = data_config(split)
        data.pages, data.cache = str(scans), str(tmp_path / "cache")
        data.polarity = "dark_on_light"
        regions = regions_config(kind)
        regions[kind].folder, regions.root, regions.workers = str(files), str(tmp_path / "out"), 1
        masks = open_masks(load_manifest(data), 10**6, regions)
        found = masks.ensure(lambda line: None)
        self.reasons = [mask.reason for mask in found]
        jobs = [masks.job(row) for row in range(len(masks.manifest))]
        return {
            job.page.path: job.source and job.source.relative_to(files).with_suffix("").as_posix()
            for job in jobs
        }

    def test_a_bare_name_counts_where_one_page_has_it(self, tmp_path, kind):
        found = self.sources(tmp_path, kind, ["p1", "p2", "Bébé"])
        assert found == {
            "a/p1.jpg": None, "b/p1.jpg": None, "b/p2.jpg": "p2", "c/Bébé.jpg": "Bébé",
        }  # fmt: skip
        assert self.reasons[2] == self.reasons[3] == ""
        for reason in self.reasons[:2]:
            assert "the file of the page a/b.jpg is a/b, or b where no other page has" in reason

    def test_a_page_of_another_split_has_the_name_too(self, tmp_path, kind):
        found = self.sources(tmp_path, kind, ["p1", "p2"], split="test")
        assert found == {"b/p1.jpg": None, "b/p2.jpg": "p2"}

    def test_folders_tell_pages_apart(self, tmp_path, kind):
        found = self.sources(tmp_path, kind, ["p1", "b/p1", "a/p1.jpg"])
        assert (found["a/p1.jpg"], found["b/p1.jpg"]) == ("a/p1.jpg", "b/p1")

    def test_another_unicode_form(self, tmp_path, kind):
        other = unicodedata.normalize("NFD", "c/Bébé")
        assert self.sources(tmp_path, kind, [other])["c/Bébé.jpg"] == other
        assert self.reasons[3] == ""

    def test_frames_of_one_file_are_told_apart_by_their_number(self, tmp_path, kind):
        """Two files of several pages with one name: numbers alone do not tell their pages apart."""
        names = ["a/volume", "b/volume", "b/other"]
        suffix = ".png" if kind == "masks" else ".xml"
        page = Image.fromarray(np.full(SHAPE, 200, np.uint8))
        for name in names:
            (tmp_path / "scans" / name).parent.mkdir(parents=True, exist_ok=True)
            page.save(tmp_path / "scans" / f"{name}.tif", save_all=True, append_images=[page])
        (tmp_path / "files" / "b").mkdir(parents=True)
        for name in ("volume-frame-2", "other-frame-2", "b/volume-frame-1"):
            file = tmp_path / "files" / f"{name}{suffix}"
            text = page_xml().replace("b.jpg", "other.tif" if "other" in name else "volume.tif")
            file.write_text(text) if kind == "xml" else page.save(file)
        data = data_config("")
        data.pages, data.cache = str(tmp_path / "scans"), str(tmp_path / "cache")
        data.polarity = "dark_on_light"
        regions = regions_config(kind)
        regions[kind].folder = str(tmp_path / "files")
        regions.root, regions.workers = str(tmp_path / "out"), 1
        masks = open_masks(load_manifest(data), 10**6, regions)
        found = [
            page.path for page, mask in zip(masks.manifest.pages, masks.ensure(lambda line: None))
            if not mask.reason
        ]  # fmt: skip
        assert found == ["b/other.tif#frame=2", "b/volume.tif#frame=1"]
