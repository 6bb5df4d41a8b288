"""Patches from random crops of pages, for pretraining on the fly.

As in the published code, a random square is cropped from a page, sometimes converted to grey or
binary as a whole, and cut into patches like a page; a random subset of the patches is kept. A slot
is a place in the global batch that holds the patches of one crop. Slot i of a run uses page i of an
endless sequence that goes through all pages in a new random order every epoch. If a crop gives too
few patches (or none, or the page cannot be read), crops of the next pages of the sequence fill the
slot. So every slot has the same number of patches, which are a pure function of `Recipe` and slot.
"""

import functools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.cutting.binarize import ink_mask, to_grey
from saghog_jax.input_pipeline.cutting.patches import Cut, Rule, cut_page
from saghog_jax.input_pipeline.errors import PageError, UserError
from saghog_jax.input_pipeline.pages.manifest import Manifest
from saghog_jax.input_pipeline.regions.page_mask import PageMask
from saghog_jax.input_pipeline.store.page_views import open_view

# Crops that a slot tries before it raises an error.
TRIES = 1000
# Epochs whose order is kept.
_ORDERS = 4


@dataclass(frozen=True)
class Recipe:
    """All inputs that determine the patches of a slot.

    manifest: the pages.
    masks: the masks of the pages, or None. With masks, crops lie within the bounding box of all
      handwriting of a page, and keypoints outside of the mask are left out.
    rule: how a crop is cut; its fields `max_patches_per_page` and `pick` are ignored.
    max_pixels: see images.load_page.
    size: side of a crop in pixels of the (scaled) page.
    patches: patches per slot.
    gray, binarize: probabilities that a crop is converted to grey, and to binary by Su's method.
    seed: of all random choices.
    """

    manifest: Manifest
    masks: tuple[PageMask, ...] | None
    rule: Rule
    max_pixels: int
    size: int
    patches: int
    gray: float
    binarize: float
    seed: int

    def __post_init__(self) -> None:
        if self.size < self.rule.patch_size:
            raise UserError(
                f"crops.size={self.size} is smaller than store.patch_size={self.rule.patch_size}"
            )
        if self.rule.detect_scale:
            raise UserError(
                f"store.detect_scale={self.rule.detect_scale} is for whole pages; crops are cut at "
                "their size, set it to 0"
            )
        if self.patches < 1:
            raise UserError(f"crops.patches_per_page={self.patches} must be at least 1")
        for name in ("gray", "binarize"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"crops.{name}={getattr(self, name)} is a probability, 0 to 1")

    @classmethod
    def from_config(
        cls,
        manifest: Manifest,
        data: ConfigDict,
        store: ConfigDict,
        crops: ConfigDict,
        seed: int,
        masks: Sequence[PageMask] | None = None,
    ) -> "Recipe":
        """Reads the fields from the sections of configs/pretrain.py."""
        return cls(
            manifest=manifest,
            masks=None if masks is None else tuple(masks),
            rule=Rule.from_config(store),
            max_pixels=data.max_pixels,
            size=crops.size,
            patches=crops.patches_per_page,
            gray=crops.gray,
            binarize=crops.binarize,
            seed=seed,
        )


class Slot(NamedTuple):
    """The patches of a slot.

    patches: uint8 [n, s, s, 3], as in patches.Cut.
    ink: uint8 [n, s*s/8], as in patches.Cut.
    short: number of crops that gave fewer patches than the slot still needed.
    unreadable: (row of the manifest, reason) of skipped pages: pages that cannot be read, that have
      no writing, or that have too little handwriting according to their masks.
    """

    patches: np.ndarray
    ink: np.ndarray
    short: int
    unreadable: list[tuple[int, str]]


def random_corner(shape: tuple[int, ...], size: int, rng: np.random.Generator) -> tuple[int, int]:
    """Top and left corner of a random square of a page [h, w, ...] padded as in `crop_at`."""
    top, left = (int(rng.integers(side + 2 * max(size - side, 0) - size + 1)) for side in shape[:2])
    return top, left


def crop_at(array: np.ndarray, corner: tuple[int, int], size: int, fill: int) -> np.ndarray:
    """Crops the square at a corner from `random_corner` from an array [h, w, ...].

    As in torchvision's RandomCrop with `pad_if_needed`: if a side is shorter than the square, it is
    padded with `fill` by the difference on both ends. So the page lies anywhere in the square.
    """
    missing = [max(size - side, 0) for side in array.shape[:2]]
    top, left = corner
    if any(missing):
        pads = [(n, n) for n in missing] + [(0, 0)] * (array.ndim - 2)
        array = np.pad(array, pads, constant_values=fill)
    return np.ascontiguousarray(array[top : top + size, left : left + size])


def framed(page: np.ndarray, mask: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops a page [h, w, 3] and its mask [h, w] to the mask's bounding box; returns views.

    A box smaller than `size` is enlarged to `size`, as far as the page reaches.
    """
    slices = []
    for axis, side in enumerate(mask.shape):
        rows = np.flatnonzero(mask.any(axis=1 - axis))
        first, last = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, side)
        length = min(max(size, last - first), side)
        first = min(max(first - (length - (last - first)) // 2, 0), side - length)
        slices.append(slice(first, first + length))
    return page[tuple(slices)], mask[tuple(slices)]


def cut_crop(
    page: np.ndarray,
    most: int,
    recipe: Recipe,
    rng: np.random.Generator,
    mask: np.ndarray | None = None,
) -> Cut:
    """At most `most` patches, randomly chosen, of a random crop of a page uint8 [h, w, 3].

    With a mask, bool [h, w], all keypoints lie in the mask.
    """
    rule = replace(recipe.rule, max_patches_per_page=most, pick="random")
    fill = 0 if rule.border == "black" else 255
    corner = random_corner(page.shape, recipe.size, rng)
    crop = crop_at(page, corner, recipe.size, fill)
    if mask is not None:
        mask = crop_at(mask, corner, recipe.size, 0)
    gray, binary = rng.random(2) < (recipe.gray, recipe.binarize)
    if binary:
        paper = 255 * (1 - ink_mask(to_grey(crop, rule.grey), "su"))
        # Otsu's threshold lies between the two values of a binary crop, so it changes nothing.
        rule = replace(rule, binarization="otsu")
        crop = np.repeat(paper[:, :, None], 3, axis=2)
    elif gray:
        crop = np.repeat(to_grey(crop, rule.grey)[:, :, None], 3, axis=2)
    return cut_page(crop, rule, int(rng.integers(2**63)), mask=mask)


class _Decoded(NamedTuple):
    """A page, uint8 [h, w, 3], and its mask, bool [h, w], or None."""

    image: np.ndarray
    mask: np.ndarray | None

    @property
    def nbytes(self) -> int:
        return self.image.nbytes + (0 if self.mask is None else self.mask.nbytes)


def _decode(recipe: Recipe, row: int) -> _Decoded:
    """A decoded page; with a mask only the bounding box of its handwriting.

    Raises:
      PageError: the page cannot be read, or has too little handwriting according to its mask.
    """
    page = recipe.manifest.pages[row]
    page_mask = recipe.masks[row] if recipe.masks else None
    factor = recipe.rule.scale * page.scale
    view = open_view(recipe.manifest.root, page, recipe.max_pixels, factor, page_mask)
    if view.mask is None:
        return _Decoded(view.image, None)
    part, mask = framed(view.image, view.mask, recipe.size)
    # Copies, so that the memory of the whole page is freed.
    return _Decoded(part.copy(), mask.copy())


class Cutter:
    """Cuts slots; several threads may call it at once.

    A cache of at most `cache_bytes` keeps decoded pages; the least recently used pages are dropped
    first.
    """

    def __init__(self, recipe: Recipe, cache_bytes: int) -> None:
        self._recipe = recipe
        self._order = functools.lru_cache(_ORDERS)(self._draw_order)
        self._cache_bytes = cache_bytes
        self._cached_bytes = 0
        self._cached: OrderedDict[int, _Decoded] = OrderedDict()
        self._unreadable: dict[int, str] = {}
        self._lock = threading.Lock()

    def __call__(self, slot: int) -> Slot:
        """The patches of slot `slot`.

        Raises:
          UserError: the pages have too little handwriting, or cannot be read.
        """
        recipe = self._recipe
        cuts: list[Cut] = []
        remaining = recipe.patches
        unreadable: dict[int, str] = {}
        short = 0
        for attempt in range(TRIES):
            row = self._row(slot + attempt)
            page = self._page(row)
            if isinstance(page, str):
                unreadable[row] = page
                continue
            rng = np.random.default_rng([recipe.seed, slot, attempt])
            cut = cut_crop(page.image, remaining, recipe, rng, page.mask)
            cuts.append(cut)
            remaining -= len(cut.x)
            if not remaining:
                return Slot(
                    np.concatenate([cut.patches for cut in cuts]),
                    np.concatenate([cut.ink for cut in cuts]),
                    short,
                    list(unreadable.items()),
                )
            short += 1
        raise UserError(self._failure(recipe.patches - remaining, unreadable))

    def _failure(self, n_patches: int, unreadable: dict[int, str]) -> str:
        message = (
            f"{TRIES} random crops in a row gave only {n_patches} of {self._recipe.patches} patches"
        )
        if unreadable:
            row, reason = next(iter(unreadable.items()))
            page = self._recipe.manifest.pages[row].page_id
            message += f"; {len(unreadable)} pages cannot be used, such as {page!r}: {reason}"
        return f"{message}; are the pages blank, or are the limits of config.store too strict?"

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, len(self._recipe.manifest))
        return int(self._order(epoch)[place])

    def _draw_order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self._recipe.seed, epoch])
        return rng.permutation(len(self._recipe.manifest))

    def _page(self, row: int) -> _Decoded | str:
        """A decoded page, or the reason why it cannot be used."""
        with self._lock:
            if row in self._unreadable:
                return self._unreadable[row]
            if row in self._cached:
                self._cached.move_to_end(row)
                return self._cached[row]
        try:
            decoded = _decode(self._recipe, row)
        except PageError as error:
            reason = " ".join(str(error).split())
            with self._lock:
                self._unreadable[row] = reason
            return reason
        self._keep(row, decoded)
        return decoded

    def _keep(self, row: int, page: _Decoded) -> None:
        if page.nbytes > self._cache_bytes:
            return
        with self._lock:
            if row not in self._cached:
                self._cached[row] = page
                self._cached_bytes += page.nbytes
            while self._cached_bytes > self._cache_bytes:
                self._cached_bytes -= self._cached.popitem(last=False)[1].nbytes
