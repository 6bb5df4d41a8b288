"""Finds the handwriting on pages and shows it, before anything is cut.

    python -m saghog_jax.main --config=configs/regions.py

Runs on the built-in corpus, on two CPU cores, in a few seconds. Writes the masks and runs/regions:
pages.csv (the result of each page, and the reason where there is no mask) and report.html, a
contact sheet of pages with their masks. On your own pages, with another backend than `ink`
(docs/regions.md):

    python -m saghog_jax.main --config=configs/regions.py:regions=xml --workdir=runs/mine/regions \
        --config.data.pages=FOLDER_OR_MANIFEST

`regions` ink, masks, xml, sam.

Stages that cut patches make missing masks themselves. They reuse these masks if the section
`regions` of their config is the same.
"""

from ml_collections import ConfigDict

from saghog_jax.configs import common
from saghog_jax.input_pipeline.regions.backends import BACKENDS


def get_config(arg: str | None = None) -> ConfigDict:
    arg = common.parse_arg(arg, ("default",), regions="ink")
    config = ConfigDict()
    config.stage = "regions"
    config.data = common.data_config("")
    config.regions = regions_config(arg.regions)
    # Factor by which later stages resize the pages. Masks do not depend on it; the command that
    # this stage names as the next one passes it on.
    config.store = ConfigDict({"scale": 1.0})
    # Most pages on the contact sheet: first the pages without a usable mask, then an even selection
    # of the others.
    config.sheet_pages = 200
    # Longer side of a page on the contact sheet, in pixels.
    config.sheet_side = 480
    return config


def regions_config(backend: str = "none") -> ConfigDict:
    """The search for handwriting on pages; patches are cut only there (docs/regions.md).

    Args:
      backend: `none` (the whole page; the section then has this field alone), `ink` (needs no
        weights), `masks` and `xml` (files of the user) or `sam` (weights given by the user). Only
        the section of this backend is added.
    """
    common.one_of(backend, BACKENDS, "regions backend")
    regions = ConfigDict()
    # How handwriting is found: `none` (the whole page), `ink`, `masks`, `xml` or `sam`. Choose it
    # by the argument of the config, such as `configs/pretrain.py:regions=ink`, which adds the
    # section of the backend.
    regions.backend = backend
    if backend == "none":
        return regions
    # Folder of the masks. Each backend with its parameters has a subfolder, named after a digest.
    regions.root = "runs/regions"
    # Worker processes of backends that need no accelerator; 0: one a core.
    regions.workers = 0
    # Pages with fewer SIFT keypoints (of Canny edges) in their mask are skipped; 0 keeps all pages.
    regions.min_keypoints = 0
    # Keypoints are counted on the `page`, or on the page painted black outside of the mask
    # (`masked`, as published; then the border of the mask has keypoints too).
    regions.keypoints_on = "page"
    # Pages are shrunk to this longer side in pixels before keypoints are counted; 0: not shrunk.
    regions.keypoints_side = 1600
    regions[backend] = _SECTIONS[backend]()
    return regions


def ink_config() -> ConfigDict:
    """Ink by local contrast, without ruled lines, stamps and scanner beds, joined to blocks."""
    ink = ConfigDict()
    # Larger pages are shrunk to this longer side in pixels; long images and large sheets less.
    ink.side = 1600
    # Sauvola's k: the higher, the less is ink.
    ink.k = 0.15
    # Widest gap between letters, words and lines that is closed, in letter heights.
    ink.gap = 4.0
    # Blocks with a smaller fraction of the page's ink are dropped.
    ink.min_share = 0.01
    return ink


def masks_config() -> ConfigDict:
    """Mask images of the user, white where handwriting is."""
    masks = ConfigDict()
    # Folder of the mask images: a/b.png for the page a/b.jpg, or b.png if no other page has the
    # name b; any image format.
    masks.folder = ""
    return masks


def xml_config() -> ConfigDict:
    """PAGE or ALTO files."""
    xml = ConfigDict()
    # Folder of the files: a/b.xml for the page a/b.jpg, or b.xml if no other page has the name b.
    # Empty: b.xml beside the page, or in the folders `page` and `alto` beside the page.
    xml.folder = ""
    # Whose polygons are the mask: `region` or `line`.
    xml.level = "region"
    return xml


def sam_config() -> ConfigDict:
    """Segment Anything, with weights given by the user (docs/segment_anything.md)."""
    sam = ConfigDict()
    # `flax` (the file `weights`) or `onnx` (the files `encoder` and `decoder`).
    sam.engine = "flax"
    # For `flax`: the file of weights, sam_vit_b_01ec64.pth or another published one, or a
    # .safetensors file of Hugging Face, which needs no PyTorch. The model size is read from it.
    sam.weights = ""
    # For `flax`: operands of matrix products: `float32`, `mixed` (bfloat16, sums in float32) or
    # `auto`.
    sam.precision = "float32"
    # For `onnx`: ONNX files of the image encoder, and of the prompt encoder with the mask decoder.
    sam.encoder = ""
    sam.decoder = ""
    # Rows and columns of the grid of points that SAM is prompted with.
    sam.points_per_side = 8
    # Points in one call of the decoder; changes memory (about 60 MB a point) but not the masks.
    sam.points_per_batch = 16
    # Input of SAM: the `edges` of the page, as published, or the `page`.
    sam.input = "edges"
    # Masks with the highest predicted IoU that the rules choose from, at most.
    sam.max_masks = 64
    # Rules that choose the masks with handwriting: of the `published_code`, or of the `paper`. Only
    # the section of the chosen rules is used.
    sam.rules = "published_code"
    _add_rules(sam)
    return sam


def _add_rules(sam: ConfigDict) -> None:
    # The rules of the published code.
    sam.published_code = ConfigDict(
        {
            # Smallest predicted IoU and stability of a mask. Of two masks whose boxes overlap by
            # more than `max_overlap` (IoU) the better one is kept.
            "min_iou": 0.88,
            "min_stability": 0.8,
            "max_overlap": 0.01,
            # A mask that covers more than the fraction `alone_share` of the page is used alone.
            # Masks that cover less than `min_share` are dropped.
            "alone_share": 0.66,
            "min_share": 0.1,
            # The two largest masks are merged if the ratio of their areas lies between these.
            "merge_low": 0.85,
            "merge_high": 1.15,
            # `area`: for a mask along all four sides of the page the area outside of it is counted,
            # while the mask itself is not inverted (the published mistake); `none`: no such rule.
            "inversion": "area",
            # Width in pixels of the margin on each side of the page that is left out.
            "border": 250,
        }
    )
    # The paper's rules, with SAM's own value where the paper gives none.
    sam.paper = ConfigDict(
        {
            # Smallest predicted IoU of a mask (the paper's confidence). Stability and overlap are
            # not in the paper.
            "min_iou": 0.8,
            "min_stability": 0.0,
            "max_overlap": 0.7,
            # Masks with a smaller fraction of the page's edge pixels are dropped.
            "min_edges": 0.1,
            # Masks that are merged, at most: those with the most edge pixels.
            "most_masks": 2,
            # Width in pixels of the margin on each side of the page that is left out.
            "border": 0,
        }
    )


_SECTIONS = {"ink": ink_config, "masks": masks_config, "xml": xml_config, "sam": sam_config}
