"""Toy sizes, so that a test runs a stage in seconds."""

from pathlib import Path

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from saghog_jax.configs import finetune, pretrain
from saghog_jax.configs.regions import regions_config
from saghog_jax.input_pipeline.datasets.synthetic import Corpus, write_corpus
from saghog_jax.stages import run_stage

SIZES = {
    "store.workers": 1,
    "regions.workers": 1,
    "precision": "float32",
    "model.width": 16,
    "model.depth": 2,
    "model.heads": 2,
    "model.decoder_width": 16,
    "model.decoder_heads": 2,
    "global_batch_size": 32,
    "total_steps": 4,
    "checkpoint_every": 2,
    "log_every": 1,
    "patches_per_class": 4,
    "netrvlad.num_clusters": 4,
    "netrvlad.init_samples": 64,
    "pseudo_labels.num_clusters": 12,
    "pseudo_labels.pca_dim": 8,
    "local_batch_size": 64,
}
# Beside `SIZES`, for the variant `small` of finetuning.
SMALL = {
    "total_steps": 2,
    "global_batch_size": 16,
    "patches_per_class": 8,
    "patches_per_bag": 2,
    "labels": "page",
    "sift_words": 5,
}


def fields(config: ConfigDict) -> dict[str, object]:
    """Full name, such as `data.pages`, -> value of every field."""
    return flatten_dict(config.to_dict(), sep=".")


def toy(config: ConfigDict, folder: Path, **changes: object) -> ConfigDict:
    """The config at toy size, with everything it reads and writes in `folder`, then `changes`.

    A change of `regions.backend` also exchanges the backend's section.
    """
    if "regions.backend" in changes:
        config.regions = regions_config(changes["regions.backend"])
    places = {
        "data.pages": str(folder / "pages" / "manifest.csv"),
        "store.root": str(folder / "prepare"),
        "data.cache": str(folder / "cache"),
        "regions.root": str(folder / "regions"),
        "checkpoint": str(folder / ("pretrain" if config.stage == "finetune" else "finetune")),
        "embeddings": str(folder / "embed"),
    }
    known = fields(config)
    if not known.get("checkpoint"):
        del places["checkpoint"]
    fitting = {key: value for key, value in (SIZES | places).items() if key in known}
    config.lock().update_from_flattened_dict(fitting | changes)
    return config


def make_small(folder: Path, corpus: Corpus, **changes: object) -> None:
    """Pages, and a pretrained and a finetuned model of the recipe `small`, in `folder`.

    Args:
      changes: of both configs.
    """
    (folder / "pages").mkdir()
    write_corpus(folder / "pages", corpus, workers=1)
    few = {"total_steps": 2, **changes}
    run_stage(toy(pretrain.get_config("small"), folder, **few), folder / "pretrain")
    run_stage(toy(finetune.get_config("small"), folder, **SMALL, **changes), folder / "finetune")
