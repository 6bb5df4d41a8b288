"""Shards of a store of ready-cut patches."""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from saghog_jax.input_pipeline.cutting.binarize import ink_mask, to_grey
from saghog_jax.input_pipeline.errors import PageError
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.input_pipeline.store.ready_pages import ReadyPage
from saghog_jax.input_pipeline.store.writer import PageResult, assemble_shard, record_type

# Far more pixels than any patch has; larger files are not decoded.
_MAX_PIXELS = 2**22
# Patches that the reason of a page names.
_NAMED = 3


class ReadyJob(NamedTuple):
    """All inputs of a shard, and the folder it is written to; sent to the workers."""

    folder: Path
    workspace: Path
    number: int
    first_row: int
    source: Path
    pages: list[ReadyPage]
    patch_size: int
    ink: str
    labelled: bool


def build_ready_shard(job: ReadyJob) -> int:
    """Reads and writes one shard, unless the shard exists already; returns its number.

    Raises:
      UserError: the shard cannot be written.
    """
    return assemble_shard(job, functools.partial(_read_page, job))


def _read_page(
    job: ReadyJob, row: int, page: ReadyPage
) -> tuple[PageResult, dict[str, np.ndarray]]:
    """The patches of one page as the arrays of a shard."""
    size = job.patch_size
    patches, labels, left_out = [], [], []
    for name, label in zip(page.names, page.labels, strict=True):
        try:
            patch = load_page(job.source / name, None, _MAX_PIXELS)
        except PageError as error:
            left_out.append(f"{name}: {error}")
            continue
        height, width = patch.shape[:2]
        if (height, width) == (size, size):
            patches.append(patch)
            labels.append(label)
        else:
            left_out.append(f"{name}: {width} x {height} pixels instead of {size} x {size}")
    n = len(patches)
    reason = ""
    if left_out:
        reason = (
            f"{len(left_out)} of {len(page.names)} patches left out: "
            + "; ".join(left_out[:_NAMED])
            + ("; ..." if len(left_out) > _NAMED else "")
        )
    arrays = {
        "patches": np.array(patches, np.uint8).reshape(n, size, size, 3),
        "ink": _pack_ink(patches, job.ink, size),
        "page": np.full(n, row, np.int32),
        "x": np.full(n, -1, np.int32),
        "y": np.full(n, -1, np.int32),
    }
    if job.labelled:
        arrays["label"] = np.array(labels, np.int32)
    status = "ok" if n else "unreadable"
    return PageResult(n, status, " ".join(reason.split())), arrays


def _pack_ink(patches: list[np.ndarray], ink: str, size: int) -> np.ndarray:
    """Packed ink masks, uint8 [n, s*s/8]."""
    if not patches:
        dtype, record = record_type("ink", size)
        return np.empty((0, *record), dtype)
    grey = to_grey(np.concatenate(patches), "opencv").reshape(-1, size, size)
    if ink == "binary":
        masks = grey < 128
    else:
        masks = np.stack([ink_mask(patch, "otsu") for patch in grey])
    return np.packbits(masks.reshape(len(patches), -1), axis=1)
