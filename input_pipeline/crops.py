"""Random crops of pages and the patches in them: what pretraining on the fly is fed with.

As published (reference: section 10 (a)): of a page a random square is cut out, sometimes made grey
or binary as a whole, and cut into patches like a page, of which some are drawn. Patches of a crop
are those of a slot, a place in the global batch: slot i of a run takes page i of an endless plan
that goes through all pages in a new random order every epoch. Where a crop gives fewer patches
than wanted (or none, or the page cannot be read), crops of the pages that follow in the plan fill
up. So every slot has the same number of patches, and they are a pure function of `Recipe` and slot.
"""

import functools
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.binarize import ink_mask, to_grey
from input_pipeline.errors import PageError, UserError
from input_pipeline.images import load_page
from input_pipeline.manifest import Manifest
from input_pipeline.patches import Cut, Rule, cut_page

# Crops that a slot tries before the pages are given up as blank.
TRIES = 1000
# Epochs whose order is kept.
_ORDERS = 4


@dataclass(frozen=True)
class Recipe:
    """All that decides the patches of a slot.

    manifest: the pages.
    rule: how a crop is cut; its numbers of patches and way of picking do not count.
    max_pixels: see images.load_page.
    size: side of a crop in pixels of the (scaled) page.
    patches: patches a slot.
    gray, binarize: probabilities that a crop is made grey, and binary by Su's method.
    seed: root of all randomness.
    """

    manifest: Manifest
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
        if self.patches < 1:
            raise UserError(f"crops.patches_per_page={self.patches} must be at least 1")
        for name in ("gray", "binarize"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"crops.{name}={getattr(self, name)} is a probability, 0 to 1")

    @classmethod
    def from_config(
        cls, manifest: Manifest, data: ConfigDict, store: ConfigDict, crops: ConfigDict, seed: int
    ) -> "Recipe":
        """Takes what decides from the sections of configs/pretrain.py."""
        return cls(
            manifest=manifest,
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

    patches: uint8 [n, s, s, 3], ink: uint8 [n, s*s/8], as patches.Cut has them.
    short: crops that gave fewer patches than were still wanted.
    unreadable: (row of the manifest, reason) of pages that were passed over.
    """

    patches: np.ndarray
    ink: np.ndarray
    short: int
    unreadable: list[tuple[int, str]]


def random_crop(page: np.ndarray, size: int, fill: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of a page [h, w, 3]; a page that is smaller lies somewhere within it.

    As torchvision's RandomCrop with `pad_if_needed`: a side that is too short is padded with `fill`
    on both ends by what is missing.
    """
    h, w = page.shape[:2]
    missing = max(size - h, 0), max(size - w, 0)
    top = rng.integers(h + 2 * missing[0] - size + 1)
    left = rng.integers(w + 2 * missing[1] - size + 1)
    if not any(missing):
        return np.ascontiguousarray(page[top : top + size, left : left + size])
    pads = [(missing[0],) * 2, (missing[1],) * 2, (0, 0)]
    padded = np.pad(page, pads, constant_values=fill)
    return np.ascontiguousarray(padded[top : top + size, left : left + size])


def cut_crop(page: np.ndarray, most: int, recipe: Recipe, rng: np.random.Generator) -> Cut:
    """Up to `most` patches, randomly drawn, of a random crop of a page uint8 [h, w, 3]."""
    rule = replace(recipe.rule, max_patches_per_page=most, pick="random")
    fill = 0 if rule.border == "black" else 255
    crop = random_crop(page, recipe.size, fill, rng)
    gray, binary = rng.random(2) < (recipe.gray, recipe.binarize)
    if binary:
        paper = 255 * (1 - ink_mask(to_grey(crop, rule.grey), "su"))
        # A crop that is binary is taken as it is; Otsu's threshold lies between its two values.
        rule = replace(rule, binarization="otsu")
        crop = np.repeat(paper[:, :, None], 3, axis=2)
    elif gray:
        crop = np.repeat(to_grey(crop, rule.grey)[:, :, None], 3, axis=2)
    return cut_page(crop, rule, int(rng.integers(2**63)))


class Cutter:
    """Cuts slots; may be called by several threads at once.

    Decoded pages are kept while they fit into `cache_bytes`, those longest unused leave first.
    """

    def __init__(self, recipe: Recipe, cache_bytes: int) -> None:
        self._recipe = recipe
        self._order = functools.lru_cache(_ORDERS)(self._draw_order)
        self._cache_bytes = cache_bytes
        self._cached_bytes = 0
        self._cached: OrderedDict[int, np.ndarray] = OrderedDict()
        self._unreadable: dict[int, str] = {}
        self._lock = threading.Lock()

    def __call__(self, slot: int) -> Slot:
        """The patches of slot `slot`.

        Raises:
          UserError: the pages have too little handwriting, or cannot be read.
        """
        recipe = self._recipe
        cuts: list[Cut] = []
        wanted = recipe.patches
        unreadable: dict[int, str] = {}
        short = 0
        for attempt in range(TRIES):
            row = self._row(slot + attempt)
            page = self._page(row)
            if isinstance(page, str):
                unreadable[row] = page
                continue
            rng = np.random.default_rng([recipe.seed, slot, attempt])
            cut = cut_crop(page, wanted, recipe, rng)
            cuts.append(cut)
            wanted -= len(cut.x)
            if not wanted:
                return Slot(
                    np.concatenate([cut.patches for cut in cuts]),
                    np.concatenate([cut.ink for cut in cuts]),
                    short,
                    list(unreadable.items()),
                )
            short += 1
        raise UserError(self._given_up(recipe.patches - wanted, unreadable))

    def _given_up(self, found: int, unreadable: dict[int, str]) -> str:
        message = (
            f"{TRIES} random crops in a row gave only {found} of {self._recipe.patches} patches"
        )
        if unreadable:
            row, reason = next(iter(unreadable.items()))
            page = self._recipe.manifest.pages[row].page_id
            message += f"; {len(unreadable)} pages cannot be read, such as {page!r}: {reason}"
        return f"{message}; are the pages blank, or config.store too strict for them?"

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, len(self._recipe.manifest))
        return int(self._order(epoch)[place])

    def _draw_order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self._recipe.seed, epoch])
        return rng.permutation(len(self._recipe.manifest))

    def _page(self, row: int) -> np.ndarray | str:
        """A decoded page, or why it cannot be read."""
        with self._lock:
            if row in self._unreadable:
                return self._unreadable[row]
            if row in self._cached:
                self._cached.move_to_end(row)
                return self._cached[row]
        manifest, recipe = self._recipe.manifest, self._recipe
        page = manifest.pages[row]
        try:
            image = load_page(
                manifest.root / page.path, page.box, recipe.max_pixels, recipe.rule.scale
            )
        except PageError as error:
            reason = " ".join(str(error).split())
            with self._lock:
                self._unreadable[row] = reason
            return reason
        self._keep(row, image)
        return image

    def _keep(self, row: int, image: np.ndarray) -> None:
        if image.nbytes > self._cache_bytes:
            return
        with self._lock:
            if row not in self._cached:
                self._cached[row] = image
                self._cached_bytes += image.nbytes
            while self._cached_bytes > self._cache_bytes:
                self._cached_bytes -= self._cached.popitem(last=False)[1].nbytes
