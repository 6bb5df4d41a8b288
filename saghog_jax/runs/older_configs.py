"""Files of older versions in today's form: config.json of run folders, meta.json of embeddings.

Changes of the fields of training configs are entered here: a new name in `_RENAMED`; a new field in
`_ADDED` or `_ADDED_BY_STAGE`, with the value that trains as before. The test of the files in
tests/runs/old_configs fails until every field of today's configs is there.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from saghog_jax.input_pipeline.cutting.patches import Rule
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.nested import flat, unflat

# Old name -> name.
_RENAMED = {
    "init_from": "checkpoint",
    "init_checkpoint": "which",
    "bag": "patches_per_bag",
    "per_class": "patches_per_class",
}
# Fields and sections of the first version, after renaming.
_FIRST = (
    *("augment", "checkpoint_every", "data", "global_batch_size", "keep_checkpoints", "loader"),
    *("log_every", "mesh", "model", "optim", "seed", "store", "total_steps"),
)
_FIRST_BY_STAGE = {
    "pretrain": ("hog", "mask_ratio", "target"),
    "finetune": (
        *("checkpoint", "dropout", "input", "labels", "loss", "netrvlad", "patches_per_class"),
        "pseudo_labels",
    ),
}
# Fields that were added later -> the value that changes nothing.
_ADDED = {
    "precision": "float32",
    "data.cluster_regex": "",
    "data.pdf_dpi": 300,
    "data.polarity": "auto",
    "data.iiif.images": "",
    "data.iiif.hosts": ["localhost", "127.0.0.1", "::1"],
    "augment.affine": 0.0,
    "augment.degrees": 10.0,
    "augment.translate": 0.1,
    "augment.scale_low": 0.9,
    "augment.scale_high": 1.1,
    "augment.jitter": 0.0,
    "augment.brightness": 0.4,
    "augment.contrast": 0.4,
    "augment.saturation": 0.4,
    "distributed.mode": "off",
    "distributed.coordinator": "",
    "distributed.num_processes": 1,
    "distributed.process_id": 0,
    "distributed.start_timeout": 300,
    "distributed.dead_after": 60,
    "regions.backend": "none",
    "store.detect_scale": 0.0,
    "accumulate": 1,
    "cpu_devices": 1,
    "remat": "none",
    "keep_every": 0,
    "which": "last",
    "validation.share": 0.0,
    "validation.every": 500,
    "validation.patches_per_page": 64,
    "validation.patience": 0,
    "tensorboard": True,
    "wandb.project": "",
    "wandb.mode": "offline",
    "profile": "",
}
_ADDED_BY_STAGE = {
    "pretrain": {
        "source": "store",
        "crops.size": 256,
        "crops.patches_per_page": 32,
        "crops.gray": 0.2,
        "crops.binarize": 0.2,
        "loader.workers": 0,
        "loader.cache_mb": 1000,
        "hog.half_precision": False,
        "checkpoint": "",
        "validation.monitor": "loss",
    },
    "finetune": {
        "encoder": "vit",
        "freeze_encoder": False,
        "descriptor": "cls",
        "min_token_ink": 0.05,
        "embed_dim": 0,
        "embed_dropout": 0.1,
        "netrvlad.normalized": False,
        "loss.kind": "multi_similarity",
        "loss.margin": 0.1,
        "loss.include_self": False,
        "loss.temperature": 0.1,
        "optim.rates": "layerwise",
        "pseudo_labels.model": "",
        "patches_per_bag": 1,
        "links.neighbours": 3,
        "links.words": 100,
        "page.power": 0.4,
        "page.scales": [1.0],
        "page.compact.components": 0,
        "page.compact.shrinkage": 1.0,
        "page.compact.full.patch": 0.0,
        "page.compact.full.keypoint": 0.0,
        "page.sift.patch": 0.0,
        "page.sift.keypoint": 0.0,
        "page.keypoint_on_ink": True,
        "page.max_patches_per_page": -1,
        "sift_words": 0,
        "validation.monitor": "map",
    },
}
# Once the two engines of Segment Anything were two backends.
_SAM_ENGINES = {"sam": "flax", "sam_onnx": "onnx"}
_ADDED_TO_SAM = {"weights": "", "precision": "float32", "encoder": "", "decoder": ""}
# Old kind of SIFT in meta.json and in the names of files -> kind.
_SIFT_KINDS = {"upright": "patch", "found": "keypoint"}
# Exponent of the power normalisation of SIFT in embeddings of older versions.
_SIFT_POWER = 0.5
# Keys of meta.json of older versions that are in the recipe today: under the same name, and all.
_RECIPE_KEYS = ("input", "patch_whitening", "pooling", "precision")
_SETTINGS = (
    *_RECIPE_KEYS,
    *("descriptor", "power", "regions_config", "scales", "sift", "sift_words", "store"),
)


def read_run_config(path: Path) -> dict[str, Any]:
    """The config of a run in today's form, with every field of today's configs.

    Args:
      path: the config.json of a run folder.

    Raises:
      UserError: the file is damaged, or not the config of a run; the message names the remedy.
    """
    config = _read_json(path)
    stage = config.get("stage")
    if stage not in _FIRST_BY_STAGE:
        raise _refusal(path, f"its stage is {stage!r}, expected {' or '.join(_FIRST_BY_STAGE)}")
    present = {_RENAMED.get(name, name) for name in config}
    missing = [name for name in (*_FIRST, *_FIRST_BY_STAGE[stage]) if name not in present]
    if missing:
        raise _refusal(path, f"it has no {missing[0]!r}")
    return upgrade_config(config)


def read_config_json(path: Path) -> dict[str, Any]:
    """A config in today's form, which may lack fields of the first version.

    Raises:
      UserError: the file is damaged; the message names the remedy.
    """
    return upgrade_config(_read_json(path))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _refusal(path, " ".join(str(error).split())) from None
    if not isinstance(config, dict):
        raise _refusal(path, "it is not a JSON object")
    return config


def _refusal(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is not the config of a run that this version can read ({reason}); train again "
        "into another --workdir"
    )


def upgrade_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of a training stage, as JSON values, in today's form."""
    values = flat(config)
    for old, new in _RENAMED.items():
        if old in values:
            values[new] = values.pop(old)
    upgraded = unflat(_ADDED | _ADDED_BY_STAGE.get(config.get("stage"), {}) | values)
    upgraded["regions"] = upgrade_regions(upgraded["regions"])
    return upgraded


def upgrade_regions(regions: Mapping[str, Any]) -> dict[str, Any]:
    """The section `regions` without the sections of other backends than the chosen one."""
    backend = regions["backend"]
    if backend == "none":
        return {"backend": backend}
    common = {name: value for name, value in regions.items() if not isinstance(value, Mapping)}
    if backend not in regions:
        # The regions backends explain how to choose one.
        return common
    section = dict(regions[backend])
    if backend in _SAM_ENGINES:
        section = {"engine": _SAM_ENGINES[backend], **_ADDED_TO_SAM, **section}
        backend = "sam"
    return {**common, "backend": backend, backend: section}


def upgrade_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The meta.json of an embeddings folder in today's form; an unchanged copy if it has that.

    An older version has one key for each setting in place of `recipe` and `digests`. These two are
    not added for whitened patches or for generalised max pooling, because the older version does
    not record all settings of them.

    Raises:
      ValueError: a setting is missing.
    """
    upgraded = dict(meta)
    if "made_from" in upgraded:
        upgraded["input_digest"] = upgraded.pop("made_from")
    for key in ("sift", "sift_words"):
        if isinstance(upgraded.get(key), Mapping):
            upgraded[key] = {_SIFT_KINDS.get(k, k): value for k, value in upgraded[key].items()}
    for key in ("model", "descriptor"):
        for old, new in _SIFT_KINDS.items():
            if upgraded.get(key) == f"sift_{old}":
                upgraded[key] = f"sift_{new}"
    if "regions_config" in upgraded:
        upgraded["regions_config"] = upgrade_regions(upgraded["regions_config"])
    known = {"patch_whitening", "pooling", "regions_config"} <= upgraded.keys()
    if known and upgraded["patch_whitening"] == "none" and upgraded["pooling"] != "gmp":
        return _with_recipe(upgraded)
    return upgraded


def _with_recipe(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces the keys of settings by `recipe` and `digests` (see `embedding.recipe`)."""
    try:
        sift = meta.get("sift", {})
        weights = {meta["descriptor"]: 1 - sum(sift.values())}
        weights |= {f"sift_{kind}": weight for kind, weight in sift.items()}
        powers = {meta["descriptor"]: meta["power"]}
        recipe = {
            "parts": [
                {"descriptor": name, "power": powers.get(name, _SIFT_POWER), "weight": weight}
                for name, weight in weights.items()
            ],
            "rule": {f.name: meta["store"][f.name] for f in fields(Rule) if f.default is MISSING},
            "scales": meta.get("scales", [1.0]),
            "gmp_lambda": 1.0,
            "max_pixels": 200_000_000,
            "regions": meta["regions_config"],
            **{key: meta[key] for key in _RECIPE_KEYS},
        }
        digests = {meta["descriptor"]: meta["checkpoint"]}
    except KeyError as error:
        raise ValueError(f"it has no {error}") from None
    digests |= {f"sift_{kind}": digest for kind, digest in meta.get("sift_words", {}).items()}
    rest = {key: value for key, value in meta.items() if key not in _SETTINGS}
    return rest | {"recipe": recipe, "digests": digests}


def existing_words_file(path: Path) -> Path:
    """The file of SIFT words in a run folder, under its old name if only that exists.

    Args:
      path: such as RUN/sift_words_patch.npy.
    """
    for old, new in _SIFT_KINDS.items():
        older = path.with_name(f"sift_words_{old}.npy")
        if path.name == f"sift_words_{new}.npy" and not path.exists() and older.exists():
            return older
    return path
