"""What the stage configs share: argument strings, and the data, store, model and run sections."""

import difflib
from collections.abc import Sequence

from ml_collections import ConfigDict

from input_pipeline.regions.backends import BACKENDS


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
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {what} {word!r}, known: {', '.join(known) or 'none'}{hint}")


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
    """How patches are cut; one store a rule. Thresholds: REFERENCE.md section 10.

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
    # The page is resized by this factor (cubic) before anything else.
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


def regions_config(backend: str = "none") -> ConfigDict:
    """Where on a page handwriting is looked for; patches are cut there alone (docs/regions.md)."""
    one_of(backend, BACKENDS, "regions backend")
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
            "border": 0,
        }
    )
    return sam


def pseudo_label_config() -> ConfigDict:
    """Pseudo labels: clusters of RootSIFT descriptors (CL-S), REFERENCE.md section 10 (d)."""
    labels = ConfigDict()
    # Clusters; each is a class of the finetuning.
    labels.num_clusters = 3000
    # PCA-whitened dimensions of the descriptors before clustering.
    labels.pca_dim = 32
    # Descriptors that PCA and k-means are fitted on, sampled from the store.
    labels.fit_samples = 500_000
    # Kept: distance to the nearest centre / to the second nearest <= max_ratio.
    labels.max_ratio = 0.9
    labels.seed = 0
    # Folder of the labels of another store (its `labels/...`), whose clusters then label these
    # pages; the numbers above but `max_ratio` are not used. Empty: clusters of these pages.
    labels.model = ""
    return labels


def model_config(size: str) -> ConfigDict:
    """The ViT-MAE: `cpu` (trains in minutes on two cores), `small` (a sixth of its work a patch) or
    `paper` (28.7 million parameters)."""
    model = ConfigDict()
    # Side of a patch in pixels, as the store cuts them.
    model.patch_size = 32
    # Side of a token, the ViT's unit inside a patch: 64 tokens a patch.
    model.token_size = 8 if size == "small" else 4
    # The encoder's transformer; the decoder's below.
    model.width, model.depth, model.heads = {
        "cpu": (128, 4, 4),
        "small": (64, 4, 2),
        "paper": (512, 8, 8),
    }[size]
    # Width of the hidden layer of a block, in widths.
    model.mlp_ratio = 4
    model.decoder_width, model.decoder_depth, model.decoder_heads = {
        "cpu": (64, 1, 4),
        "small": (64, 1, 4),
        "paper": (512, 1, 16),
    }[size]
    return model


def run_config(config: ConfigDict) -> None:
    """Adds what both training stages share to `config`, in place."""
    # Root of all randomness: weights, data order, masks, augmentation.
    config.seed = 0
    # Patches a step, over all devices and hosts.
    config.global_batch_size = 512
    config.total_steps = 1000
    # Operands of matrix products: `float32`, `mixed` (bfloat16, sums in float32) or `auto`: mixed
    # on accelerators and on CPUs with bfloat16 instructions.
    config.precision = "auto"
    # The batch goes through the model in so many parts, one after the other: the same update in
    # less memory. Pretraining takes no more time for it, finetuning a forward pass more (its loss
    # sees the whole batch, for which each part is computed twice).
    config.accumulate = 1
    # What is kept for the gradient: `none` (nothing is computed again) or `blocks` (the inputs of
    # transformer blocks and of the loss; the rest is computed again).
    config.remat = "none"
    # Axis sizes of the device mesh; -1 takes what is left of the devices.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    # Several processes, on one machine or on many.
    config.distributed = distributed_config()
    # Evaluation while training, on pages of writers that are held out.
    config.validation = ConfigDict(
        {
            # Share of the writers (and of the pages without one) that is not trained on; 0: none,
            # no evaluation, and no best checkpoint.
            "share": 0.0,
            # Evaluated every so many steps and at the end.
            "every": 500,
            # Patches of a page, at most.
            "patches_per_page": 64,
            # What makes a checkpoint the best: `map` (retrieval among the held-out pages; needs
            # writers) or `loss` (pretraining: of the held-out patches).
            "monitor": "map",
            # Training stops after so many evaluations without a new best; 0: never.
            "patience": 0,
        }
    )
    # A line of metrics every so many steps.
    config.log_every = 50
    # A checkpoint every so many steps and at the end; the newest `keep_checkpoints` stay, the best,
    # and those of every `keep_every` steps (0: no others).
    config.checkpoint_every = 500
    config.keep_checkpoints = 2
    config.keep_every = 0
    # Writes the metrics also as TensorBoard events, in the run folder.
    config.tensorboard = True
    # Weights & Biases, if a project is named: `offline` (for `wandb sync` to upload) or `online`.
    config.wandb = ConfigDict({"project": "", "mode": "offline"})
    # `FIRST,LAST`: a trace of these steps of this call, for TensorBoard or Perfetto; empty: none.
    config.profile = ""
    # Threads and batches in advance of the loader.
    config.loader = ConfigDict({"threads": 2, "prefetch": 4})


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


def augment_config(**changes: float) -> ConfigDict:
    """Augmentation of training patches, on the device; off where the probability is 0."""
    augment = ConfigDict()
    # Probabilities a patch: grey, replaced by its binary form, ink made thicker, ink made thinner.
    augment.gray = 0.0
    augment.binarize = 0.0
    augment.erode = 0.0
    augment.dilate = 0.0
    # Probability that a patch is turned by up to `degrees`, moved by up to the share `translate` of
    # its side, and enlarged by a factor from `scale_low` to `scale_high`.
    augment.affine = 0.0
    augment.degrees = 10.0
    augment.translate = 0.1
    augment.scale_low = 0.9
    augment.scale_high = 1.1
    # Probability that the colours change: each property by a factor of 1 minus to 1 plus these.
    augment.jitter = 0.0
    augment.brightness = 0.4
    augment.contrast = 0.4
    augment.saturation = 0.4
    augment.update(changes)
    return augment


def optim_config() -> ConfigDict:
    """AdamW with warm-up and cosine decay, a step at a time (REFERENCE.md section 6)."""
    optim = ConfigDict()
    # Peak, first and last learning rate.
    optim.learning_rate = 8e-4
    optim.start_learning_rate = 8e-5
    optim.final_learning_rate = 8e-6
    optim.warmup_steps = 100
    optim.weight_decay = 0.05
    optim.b1 = 0.9
    optim.b2 = 0.999
    optim.eps = 1e-8
    # Global norm the gradient is clipped to.
    optim.clip_norm = 0.02
    return optim
