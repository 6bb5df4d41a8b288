"""What stages share: argument strings, and the sections of pages, stores and processes."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import unknown_choice


def parse_arg(arg: str | None, variants: Sequence[str], **defaults: object) -> ConfigDict:
    """Parses the text after the colon of `--config=configs/NAME.py:ARG`.

    ARG is a comma-separated list: at most one bare word, one of `variants` (the first of them is
    the default), and `key=value` pairs, each value read as the type of that key's default.

    Returns:
      a ConfigDict with `variant` and every key of `defaults`.

    Raises:
      ValueError: an unknown variant or key (names the nearest known one), a value of another type,
        two variants.
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
    """The word itself.

    Raises:
      ValueError: it is not known; names the nearest one.
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
    """The pages a stage reads."""
    data = ConfigDict()
    # A folder of page images, one image, a manifest CSV, a IIIF manifest (a .json file or an
    # address), `synthetic` (the built-in corpus), or a public collection such as
    # `tfds:historical_wi/color,manual_dir=FOLDER` (input_pipeline/datasets/catalog.py). A folder
    # that holds a manifest.csv stands for that file, unless one of the expressions below is given.
    data.pages = "synthetic"
    # Rows of the manifest whose column `split` has this value; all rows where empty or where the
    # manifest has no such column.
    data.split = split
    # For folders: regular expressions searched in the path below the folder. The first group (or
    # the group named `writer`/`page`) is the value; further named groups become columns. Without
    # an expression the writer stays empty and the page is the file name.
    data.writer_regex = ""
    data.page_regex = ""
    # With this expression `data.pages` is a folder of ready-cut patches, which pretraining and
    # finetuning read in place of pages: it finds the cluster that a patch is labelled with, as the
    # two above (the second is then needed) find writer and page. `()` finds none. The published
    # names: `(\d+)` for the cluster, `\d+_(\d+)` for the writer, `IMG_MAX_(\d+)` for the page.
    data.cluster_regex = ""
    data.iiif = ConfigDict(
        {
            # Folder that holds the images of a IIIF manifest, found by the file name (or the Image
            # API's identifier) in their addresses. Empty: the folder of the manifest.
            "images": "",
            # Servers that may be asked for a manifest, or for images that are not on disk.
            "hosts": ("localhost", "127.0.0.1", "::1"),
        }
    )
    # Largest accepted image, in pixels (width x height): protects against decompression bombs.
    data.max_pixels = 200_000_000
    # Where the built-in corpus is written (once) so that its pages can be looked at, and what a
    # IIIF server sent.
    data.cache = "runs/data"
    return data


STORE_RULES = ("pretrain", "offline", "offline_color", "eval", "eval_color")


# Of `configs/pretrain.py:small` and `configs/finetune.py:small`, which share a store.
SMALL_PATCHES_PER_PAGE = 800


def store_config(rule: str) -> ConfigDict:
    """How patches are cut; one store a rule. Thresholds are those of the published code.

    Args:
      rule: `pretrain` (ink 8 to 80 %), `offline` (Otsu, SIFT descriptors kept for pseudo labels)
        and `offline_color` (the same by edges), `eval` (keypoint on ink) and `eval_color` (the
        same by black and white). It only sets the defaults of the fields below.
    """
    one_of(rule, STORE_RULES, "store rule")
    offline = rule.startswith("offline")
    store = ConfigDict()
    # Name of the store's folder; what is cut is decided by the fields below alone.
    store.rule = rule
    # Side of a patch in pixels of the (scaled) page.
    store.patch_size = 32
    # The page is resized by this factor (cubic) before anything else, times the `scale` that a
    # manifest may give it. `prepare` with `dry_run` says how wide strokes are.
    store.scale = 1.0
    # Grey conversion: `pillow`, or `opencv` as the published extraction scripts (0.1 % of pixels
    # differ by one).
    store.grey = "opencv" if offline else "pillow"
    # `isauvola`, `sauvola`, `su`, `otsu`.
    store.binarization = "otsu" if offline else "isauvola"
    # SIFT finds keypoints on the `binary` or the `grey` page.
    store.detect_on = "binary"
    # Blur of SIFT's first octave, in pixels.
    store.sift_sigma = 1.6
    # What decides about a patch: the share of `ink`, of black and white pixels of the `grey` crop,
    # or of `edges` (Canny, 30 and 200); the thresholds follow.
    store.keep = {"offline_color": "edges", "eval_color": "grey"}.get(rule, "ink")
    # `ink`: kept where min_ink <= share of ink pixels <= max_ink.
    store.min_ink = 0.08 if rule == "pretrain" else 0.01
    store.max_ink = 0.8 if rule == "pretrain" else 1.0
    # `grey`: kept where the shares of black and of white pixels are below these.
    store.max_black = 0.5
    store.max_white = 0.95
    # `edges`: kept where the share of edge pixels is at least this.
    store.min_edges = 0.1
    # The pixel under the keypoint must be ink.
    store.keypoint_on_ink = rule.startswith("eval")
    # Patches across the page's border: filled up with `white` paper, with `black` (ink, as the
    # published samplers do), or `drop` (as the published extraction scripts do).
    store.border = "drop" if offline else "white"
    # A page without any patch gives the one at its centre.
    store.centre_if_empty = False
    # Keep the SIFT descriptor of each patch: pseudo labels need it.
    store.descriptors = offline
    # At most so many patches a page; -1 keeps all. `even` picks them evenly in the order of x,
    # `random` draws them.
    store.max_patches_per_page = 1000
    store.pick = "even"
    # Folder that holds the stores, each in a subfolder named after the digest of what made it.
    store.root = "runs/prepare"
    # Pages a shard: the unit of atomic writing and of parallel work.
    store.pages_per_shard = 16
    # Worker processes; 0 takes one a core.
    store.workers = 0
    return store


def pseudo_label_config() -> ConfigDict:
    """Pseudo labels: clusters of RootSIFT descriptors (CL-S in the paper)."""
    labels = ConfigDict()
    # Clusters; each is a class of the finetuning.
    labels.num_clusters = 3000
    # PCA-whitened dimensions of the descriptors before clustering.
    labels.pca_dim = 32
    # Descriptors that PCA and k-means are fitted on, sampled from the store.
    labels.fit_samples = 500_000
    # Kept: distance to the nearest centre / to the second nearest <= max_ratio.
    labels.max_ratio = 0.9
    # Of that sample and of the first centres.
    labels.seed = 0
    # Folder of the labels of another store (its `labels/...`), whose clusters then label these
    # pages; the numbers above but `max_ratio` are not used. Empty: clusters of these pages.
    labels.model = ""
    return labels


def page_links_config() -> ConfigDict:
    """Classes of pages that SIFT finds alike, in place of writers that nobody knows."""
    links = ConfigDict()
    # A page is linked with at most so many others: those before the largest drop in similarity of
    # its nearest, where they have it among theirs.
    links.neighbours = 3
    # Words of the SIFT-VLAD that compares pages.
    links.words = 100
    return links


def distributed_config() -> ConfigDict:
    """Several processes that work as one, on one machine or on many (docs/training.md)."""
    distributed = ConfigDict()
    # `off`: this process works alone. `auto`: with the others that jax finds on SLURM, Open MPI,
    # Kubernetes or a TPU pod. `explicit`: with those that the next three fields name.
    distributed.mode = "off"
    # HOST:PORT at which process 0 can be reached, how many processes, which of them this one is.
    distributed.coordinator = ""
    distributed.num_processes = 1
    distributed.process_id = 0
    # Seconds to wait for the others at the start, and until one without a sign of life is dead.
    distributed.start_timeout = 300
    distributed.dead_after = 60
    return distributed
