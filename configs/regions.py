"""Finds the handwriting on pages and shows it, before anything is cut.

    python -m saghog_jax.main --config=configs/regions.py

Runs on the built-in corpus, on two CPU cores, in a few seconds; writes runs/regions: the masks,
pages.csv (what became of each page, and why) and report.html, a contact sheet of pages with their
masks. On your own pages, and with other ways of finding handwriting than `ink` (docs/regions.md):

    python -m saghog_jax.main --config=configs/regions.py --config.data.pages=FOLDER_OR_MANIFEST \
        --config.regions.backend=xml --workdir=runs/mine/regions

The stages that cut patches make masks themselves where they are missing, and take these where the
section `regions` of their config is the same.
"""

from ml_collections import ConfigDict

from saghog_jax.configs import common
from saghog_jax.input_pipeline.regions.backends import BACKENDS


def get_config(arg: str | None = None) -> ConfigDict:
    common.parse_arg(arg, ("ink",))
    config = ConfigDict()
    config.stage = "regions"
    config.data = common.data_config("")
    config.regions = regions_config("ink")
    # Pages on the contact sheet, at most: first those without a mask that could be used, then
    # others, evenly picked.
    config.sheet_pages = 200
    # Longer side of a page there, in pixels.
    config.sheet_side = 480
    return config


def regions_config(backend: str = "none") -> ConfigDict:
    """Where on a page handwriting is looked for; patches are cut there alone (docs/regions.md)."""
    common.one_of(backend, BACKENDS, "regions backend")
    regions = ConfigDict()
    # `none` (the whole page), `ink` (needs no weights), `masks` and `xml` (files that you have),
    # `sam` and `sam_onnx` (weights that you give).
    # Each has a section below, which counts only if it is named.
    regions.backend = backend
    # Folder that keeps the masks, in a subfolder named after the digest of what decides them.
    regions.root = "runs/regions"
    # Worker processes of backends that need no device; 0 takes one a core.
    regions.workers = 0
    # Pages with fewer SIFT keypoints (of Canny edges) in their mask are left out; 0 keeps all.
    regions.min_keypoints = 0
    # They are counted on the `page`, or on the page made black outside of the mask (`masked`, whose
    # border then has keypoints too, as published) ...
    regions.keypoints_on = "page"
    # ... shrunk to this longer side in pixels, or as it is with 0.
    regions.keypoints_side = 1600
    # Ink by local contrast, cleaned of rules, stamps and scanner beds, joined to blocks of text.
    regions.ink = ConfigDict(
        {
            # Longer side in pixels that larger pages are shrunk to.
            "side": 1600,
            # Sauvola's k: higher takes less for ink.
            "k": 0.15,
            # Widest gap that is closed between letters, words and lines, in heights of a letter.
            "gap": 4.0,
            # Blocks with a smaller share of the page's ink are dropped.
            "min_share": 0.01,
        }
    )
    # Images in a folder, white where handwriting is: for the page a/b.jpg a/b.png or b.png there,
    # or of any other kind that pages may be of.
    regions.masks = ConfigDict({"folder": ""})
    # PAGE or ALTO files: for a/b.jpg a/b.xml or b.xml in `folder` or, where it is empty, b.xml
    # beside the page or in the folders `page` and `alto` there. `level` says whose polygons count:
    # `region` or `line`.
    regions.xml = ConfigDict({"folder": "", "level": "region"})
    # Segment Anything, by weights or by ONNX files that you give.
    regions.sam = sam_config("sam")
    regions.sam_onnx = sam_config("sam_onnx")
    return regions


def sam_config(backend: str) -> ConfigDict:
    """The backends `sam` and `sam_onnx`, Segment Anything (docs/segment_anything.md)."""
    sam = ConfigDict()
    if backend == "sam":
        # The file of weights, sam_vit_b_01ec64.pth or another of the published ones (or those of
        # Hugging Face as .safetensors, which need no PyTorch); the size is read from it.
        sam.weights = ""
        # Operands of matrix products: `float32`, `mixed` (bfloat16, sums in float32) or `auto`.
        sam.precision = "float32"
    else:
        # ONNX files of the image encoder, and of the prompt encoder with the mask decoder.
        sam.encoder = ""
        sam.decoder = ""
    # Masks are asked for at the points of a grid of so many rows and columns, ...
    sam.points_per_side = 8
    # ... so many points at once: decides memory (about 60 MB a point), not masks.
    sam.points_per_batch = 16
    # What SAM is shown: the `edges` of the page, as published, or the `page`.
    sam.input = "edges"
    # Of the masks found, the best so many are kept for the rules to choose from.
    sam.max_masks = 64
    # Which masks are handwriting: by `published_code`, or as the `paper` says. Each has its section
    # below, which counts only if it is named.
    sam.rules = "published_code"
    sam.published_code = ConfigDict(
        {
            # Masks must be predicted an IoU above this and reach this stability; of two whose boxes
            # overlap by more, the better is kept.
            "min_iou": 0.88,
            "min_stability": 0.8,
            "max_overlap": 0.01,
            # A mask of more than this share of the page is taken alone, one of less than the second
            # is dropped.
            "alone_share": 0.66,
            "min_share": 0.1,
            # The two largest are merged where their areas have a ratio between these.
            "merge_low": 0.85,
            "merge_high": 1.15,
            # `area`: a mask along all four sides of the page counts with the area that it leaves
            # free, while the mask itself stays as it is, the published mistake; `none`: neither.
            "inversion": "area",
            # Pixels left out on each side of the page.
            "border": 250,
        }
    )
    # As the paper says, with SAM's own value where it says nothing.
    sam.paper = ConfigDict(
        {
            # The confidence that masks must have; stability and overlap are not in the paper.
            "min_iou": 0.8,
            "min_stability": 0.0,
            "max_overlap": 0.7,
            # Masks with a smaller share of the page's edge pixels are dropped.
            "min_edges": 0.1,
            # So many are merged, those with most edges.
            "most_masks": 2,
            # Pixels left out on each side of the page.
            "border": 0,
        }
    )
    return sam
