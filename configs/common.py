"""What several stages share: arguments of configs, and sections for pages, stores and processes."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from saghog_jax.input_pipeline.cutting.patches import Rule
from saghog_jax.input_pipeline.cutting.rules import RULES, published_rule
from saghog_jax.input_pipeline.errors import unknown_choice


def parse_arg(arg: str | None, variants: Sequence[str], **defaults: object) -> ConfigDict:
    """Parses the text after the colon of `--config=configs/NAME.py:ARG`.

    ARG is a comma-separated list of at most one variant and of `key=value` pairs. The first of
    `variants` is the default. Each value is parsed as the type of the default of its key.

    Returns:
      a ConfigDict with `variant` and every key of `defaults`.

    Raises:
      ValueError: a variant or key is unknown (the message names the nearest known one), a value has
        another type, or there are two variants.
    """
    parsed: dict[str, object] = {"variant": variants[0], **defaults}
    bare = [part for part in (arg or "").split(",") if part and "=" not in part]
    if len(bare) > 1:
        raise ValueError(f"config argument {arg!r} names {len(bare)} variants {bare}; give one")
    if bare:
        parsed["variant"] = one_of(bare[0], variants, "variant")
    for part in (arg or "").split(","):
        if "=" in part:
            key, text = part.split("=", 1)
            key = one_of(key, list(defaults), "config argument")
            parsed[key] = _typed(key, text, defaults[key])
    return ConfigDict(parsed)


def one_of(word: str, known: Sequence[str], what: str) -> str:
    """Returns `word` if it is known.

    Raises:
      ValueError: the word is unknown; the message names the nearest known word.
    """
    if word in known:
        return word
    raise ValueError(unknown_choice(what, word, known, suggest=True))


def _typed(key: str, text: str, default: object) -> object:
    if isinstance(default, bool):
        if text.lower() in ("true", "1", "yes"):
            return True
        if text.lower() in ("false", "0", "no"):
            return False
        raise ValueError(f"config argument {key}={text!r} is not a boolean (true or false)")
    try:
        return type(default)(text)
    except ValueError:
        raise ValueError(
            f"config argument {key}={text!r} is not of type {type(default).__name__}"
        ) from None


def data_config(split: str) -> ConfigDict:
    """The pages that a stage reads."""
    data = ConfigDict()
    # A folder of page images, one image, a PDF or a folder of PDFs, a manifest CSV, a IIIF manifest
    # (a .json file or a URL), `synthetic` (the built-in corpus), or a public collection such as
    # `tfds:historical_wi/color,manual_dir=FOLDER` (input_pipeline/datasets/catalog.py). For a
    # folder with a manifest.csv that manifest is read, unless one of the regular expressions below
    # is set.
    data.pages = "synthetic"
    # Value of the manifest's column `split`: only pages with this value are read. Empty, or without
    # that column: all pages.
    data.split = split
    # For folders: regular expressions that are searched in the path of an image, relative to the
    # folder. The first group (or the group named `writer` or `page`) is the value; further named
    # groups become columns. Without an expression the writer is unknown and the page is the file
    # name.
    data.writer_regex = ""
    data.page_regex = ""
    # If set, `data.pages` is a folder of ready-cut patches for pretraining and finetuning. The
    # expression finds the cluster (label) of a patch; the two expressions above find writer and
    # page, and `page_regex` is required. `()` means no cluster. For the published file names:
    # `(\d+)` for the cluster, `\d+_(\d+)` for the writer, `IMG_MAX_(\d+)` for the page.
    data.cluster_regex = ""
    data.iiif = ConfigDict(
        {
            # Folder with the images of a IIIF manifest. They are found by the file name (or Image
            # API identifier) in their URLs. Empty: the folder of the manifest.
            "images": "",
            # Servers that may be asked for a manifest, or for images that are not on disk.
            "hosts": ("localhost", "127.0.0.1", "::1"),
        }
    )
    # Resolution at which pages of PDF files are drawn, in pixels an inch (`pip install
    # 'saghog_jax[pdf]'`).
    data.pdf_dpi = 300
    # Largest accepted image in pixels (width x height), against decompression bombs.
    data.max_pixels = 200_000_000
    # Polarity of the writing: `auto` (found on each page), `dark_on_light` or `light_on_dark`
    # (negatives, blueprints; such pages are inverted). The manifest's column `polarity` sets it for
    # a page. Pages without writing are skipped; with a stated polarity faint pages are used.
    data.polarity = "auto"
    # Folder for the built-in corpus (written once), files from IIIF servers and pages of PDFs.
    data.cache = "runs/data"
    return data


# Of `configs/pretrain.py:small` and `configs/finetune.py:small`, which share a store.
SMALL_PATCHES_PER_PAGE = 800
# Of all variants `small`: keypoints are found on the grey page as it was read (docs/quality.md).
SMALL_ONE_PASS = {"detect_scale": 1.0, "detect_on": "grey"}


def store_config(rule: str) -> ConfigDict:
    """How patches are cut. Each rule has its own store; thresholds are those of the published code.

    Args:
      rule: sets the defaults of the fields: `pretrain` (ink 8 to 80 %), `offline` (Otsu, with SIFT
        descriptors for pseudo labels), `offline_color` (the same, kept by edges), `eval` (keypoint
        on ink) and `eval_color` (the same, kept by black and white pixels).
    """
    one_of(rule, RULES, "store rule")
    defaults = published_rule(rule)
    store = ConfigDict()
    # Name of the store's folder. It does not change how patches are cut.
    store.rule = rule
    # Side of a patch in pixels of the scaled page.
    store.patch_size = defaults.patch_size
    # Factor by which pages are resized (cubic) before they are cut, times the `scale` of the page
    # in the manifest. `prepare` with `dry_run` prints the stroke width.
    store.scale = defaults.scale
    # Grey conversion: `pillow`, or `opencv` as in the published extraction scripts (0.1 % of the
    # pixels differ by one).
    store.grey = defaults.grey
    # `isauvola`, `sauvola`, `su`, `otsu`.
    store.binarization = defaults.binarization
    _add_keypoints(store, defaults)
    # Criterion for keeping a patch: the fraction of `ink` pixels, of black and of white pixels of
    # the `grey` crop, or of `edges` (Canny, 30 and 200). The thresholds follow.
    store.keep = defaults.keep
    # For `ink`: smallest and largest fraction of ink pixels.
    store.min_ink = defaults.min_ink
    store.max_ink = defaults.max_ink
    # For `grey`: the fractions of black and of white pixels must be below these.
    store.max_black = defaults.max_black
    store.max_white = defaults.max_white
    # For `edges`: smallest fraction of edge pixels.
    store.min_edges = defaults.min_edges
    # Only patches with ink under their keypoint are kept.
    store.keypoint_on_ink = defaults.keypoint_on_ink
    # Patches that cross the page's border: padded with `white` paper, with `black` (ink, as in the
    # published samplers), or dropped (`drop`, as in the published extraction scripts).
    store.border = defaults.border
    # A page without any patch gives the patch at its centre.
    store.centre_if_empty = defaults.centre_if_empty
    # Store the SIFT descriptor of each patch, which pseudo labels need.
    store.descriptors = defaults.descriptors
    # Most patches of a page; -1: all.
    store.max_patches_per_page = defaults.max_patches_per_page
    # Patches of a page with more: `even` picks evenly in the order of x, `random` draws.
    store.pick = defaults.pick
    # Folder of the stores. Each store has a subfolder named after a digest of its pages and
    # settings.
    store.root = "runs/prepare"
    # Pages in a shard, which is the unit of atomic writing and of parallel work.
    store.pages_per_shard = 16
    # Worker processes; 0: one a core.
    store.workers = 0
    return store


def _add_keypoints(store: ConfigDict, defaults: Rule) -> None:
    """Adds the fields that say how keypoints are found."""
    # SIFT keypoints are found on the `binary` or the `grey` page.
    store.detect_on = defaults.detect_on
    # Above 0: one pass over a page. Keypoints are found once for all scales, and the page is
    # binarised once: resized by this factor, or by that of the largest scale if it is smaller.
    # Windows are resampled from the page as it was read. 0: each scale resizes the page, binarises
    # it and finds keypoints on it, as in the published code. Needs `keep='ink'`.
    store.detect_scale = defaults.detect_scale
    # Blur of SIFT's first octave, in pixels of the page as it is cut (at its first scale). One pass
    # takes at least 1 pixel of the page on which it finds keypoints.
    store.sift_sigma = defaults.sift_sigma


def pseudo_label_config() -> ConfigDict:
    """Pseudo labels: clusters of RootSIFT descriptors (CL-S in the paper)."""
    labels = ConfigDict()
    # Clusters; each cluster is a class of finetuning.
    labels.num_clusters = 3000
    # Dimensions of the PCA-whitened descriptors that are clustered.
    labels.pca_dim = 32
    # Descriptors sampled from the store, to which PCA and k-means are fitted.
    labels.fit_samples = 500_000
    # A patch is labelled if its distance to the nearest centre divided by that to the second
    # nearest is at most this.
    labels.max_ratio = 0.9
    # Seed of the sample and of the initial centres.
    labels.seed = 0
    # Folder of the labels of another store (its `labels/...`), whose clusters label these pages.
    # Then the fields above except `max_ratio` are not used. Empty: clusters of these pages.
    labels.model = ""
    return labels


def page_links_config() -> ConfigDict:
    """Classes of pages that are similar by SIFT, for pages of unknown writers."""
    links = ConfigDict()
    # Most pages that a page is linked with: its nearest pages before the largest drop in
    # similarity, if the page is also among their nearest.
    links.neighbours = 3
    # Visual words of the SIFT-VLAD that compares pages.
    links.words = 100
    return links


def distributed_config() -> ConfigDict:
    """Several processes that work on one task, on one machine or on many (docs/training.md)."""
    distributed = ConfigDict()
    # `off`: this process works alone. `auto`: with the processes that jax finds on SLURM, Open MPI,
    # Kubernetes or a TPU pod. `explicit`: with the processes given by the next three fields.
    distributed.mode = "off"
    # HOST:PORT of process 0, the number of processes, and the number of this process.
    distributed.coordinator = ""
    distributed.num_processes = 1
    distributed.process_id = 0
    # Seconds to wait for the other processes at the start, and seconds without a signal after which
    # a process counts as dead.
    distributed.start_timeout = 300
    distributed.dead_after = 60
    return distributed
