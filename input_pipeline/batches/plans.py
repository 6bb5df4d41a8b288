"""Plans: the patches of the global batch of each step.

A plan is a random-access source: plan[step] holds the indices of the global batch of this step. It
is a pure function of the plan's arguments and the step. So the batches do not depend on the number
of threads and processes, or on restarts, and the position in the data is the step itself.
"""

import threading
from collections import Counter
from typing import Protocol

import numpy as np

from saghog_jax.input_pipeline.errors import UserError

# Epochs whose order a uniform plan keeps: a batch can span two epochs, and threads read ahead.
CACHED_EPOCHS = 2


class Plan(Protocol):
    """Random access to the global batches of a run."""

    global_batch_size: int

    def __len__(self) -> int:
        """Number of steps of the run."""

    def __getitem__(self, step: int) -> np.ndarray:
        """Indices of the global batch of step `step`, int64 [global_batch_size]."""


class UniformPlan:
    """Each epoch is a random order of all patches; batches may span epochs."""

    def __init__(self, n: int, global_batch_size: int, total_steps: int, seed: int) -> None:
        """Use `uniform_plan`."""
        self.global_batch_size = global_batch_size
        self._n = n
        self._total_steps = total_steps
        self._seed = seed
        self._orders: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._total_steps

    def __getitem__(self, step: int) -> np.ndarray:
        start = _checked(step, self) * self.global_batch_size
        epoch, first = divmod(start, self._n)
        head = self._order(epoch)[first : first + self.global_batch_size]
        rest = self.global_batch_size - len(head)
        if rest:
            head = np.concatenate([head, self._order(epoch + 1)[:rest]])
        return head.astype(np.int64)

    def _order(self, epoch: int) -> np.ndarray:
        with self._lock:
            order = self._orders.get(epoch)
            if order is None:
                rng = np.random.default_rng([self._seed, epoch])
                dtype = np.int32 if self._n < 2**31 else np.int64
                order = rng.permutation(np.arange(self._n, dtype=dtype))
                self._orders[epoch] = order
                for old in sorted(self._orders)[:-CACHED_EPOCHS]:
                    del self._orders[old]
            return order


class SubsetPlan:
    """A plan over a subset of the patches of a store."""

    def __init__(self, plan: Plan, subset: np.ndarray) -> None:
        """Restricts a plan.

        Args:
          plan: over n patches.
          subset: int [n], the index of each of these patches in the store.
        """
        self.global_batch_size = plan.global_batch_size
        self._plan, self._subset = plan, subset

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, step: int) -> np.ndarray:
        return self._subset[self._plan[step]]


class MPerClassPlan:
    """Each batch: classes drawn without replacement, then `patches_per_class` patches of each.

    The patches of a class are drawn without replacement, or with replacement if the class has fewer
    than `patches_per_class` patches.
    """

    def __init__(
        self,
        labels: np.ndarray,
        patches_per_class: int,
        global_batch_size: int,
        total_steps: int,
        seed: int,
    ) -> None:
        """Use `m_per_class_plan`."""
        self.global_batch_size = global_batch_size
        self._per_class = patches_per_class
        self._total_steps = total_steps
        self._seed = seed
        # Patches sorted by class: class c is members[starts[c] : starts[c] + sizes[c]].
        labelled = np.flatnonzero(labels >= 0)
        self._members = labelled[np.argsort(labels[labelled], kind="stable")]
        _, self._starts, self._sizes = np.unique(
            labels[self._members], return_index=True, return_counts=True
        )

    @property
    def num_classes(self) -> int:
        """Number of classes with at least one patch."""
        return len(self._sizes)

    def __len__(self) -> int:
        return self._total_steps

    def __getitem__(self, step: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, _checked(step, self)])
        count = self.global_batch_size // self._per_class
        classes = rng.choice(self.num_classes, count, replace=False)
        positions = _subsets(rng, self._sizes[classes], self._per_class)
        return self._members[self._starts[classes, None] + positions].reshape(-1)


class BagPlan:
    """Each batch: classes drawn without replacement, then `bags_per_class` bags of each.

    If there are fewer classes than a batch needs, they are drawn again, so some classes give two or
    more times as many bags. A bag has `patches_per_bag` patches from one page, side by side in the
    batch. The pages of a class are drawn without replacement, and drawn again if the class has
    fewer pages than bags. Bags from one page share patches only if the page has too few patches.
    """

    def __init__(
        self,
        labels: np.ndarray,
        pages: np.ndarray,
        patches_per_bag: int,
        bags_per_class: int,
        global_batch_size: int,
        total_steps: int,
        seed: int,
    ) -> None:
        """Use `bag_plan`."""
        self.global_batch_size = global_batch_size
        self._patches_per_bag, self._bags_per_class = patches_per_bag, bags_per_class
        self._total_steps = total_steps
        self._seed = seed
        # The patches of one class on one page are members[starts[i] : starts[i] + sizes[i]]. Class
        # c has the pages firsts[c] <= i < firsts[c + 1].
        labelled = np.flatnonzero(labels >= 0)
        order = np.lexsort((pages[labelled], labels[labelled]))
        self._members = labelled[order]
        label, page = labels[self._members], pages[self._members]
        begins = np.r_[True, (np.diff(label) != 0) | (np.diff(page) != 0)][: len(label)]
        self._starts = np.flatnonzero(begins)
        self._sizes = np.diff(np.r_[self._starts, len(label)])
        begins = np.r_[True, np.diff(label[self._starts]) != 0][: len(self._starts)]
        self._firsts = np.r_[np.flatnonzero(begins), len(self._starts)]

    @property
    def num_classes(self) -> int:
        """Number of classes with at least one patch."""
        return len(self._firsts) - 1

    def __len__(self) -> int:
        return self._total_steps

    def __getitem__(self, step: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, _checked(step, self)])
        count = self.global_batch_size // (self._patches_per_bag * self._bags_per_class)
        rounds, rest = divmod(count, self.num_classes)
        drawn = [*range(self.num_classes)] * rounds
        drawn += rng.choice(self.num_classes, rest, replace=False).tolist()
        return np.concatenate(
            [
                self._of_class(rng, c, self._bags_per_class * times)
                for c, times in Counter(drawn).items()
            ]
        )

    def _of_class(self, rng: np.random.Generator, c: int, bags: int) -> np.ndarray:
        """Patches of `bags` bags of a class, int64 [bags * patches_per_bag]."""
        first, n = self._firsts[c], self._firsts[c + 1] - self._firsts[c]
        # Whole rounds over all pages of the class, then a random subset of its pages.
        rounds, rest = divmod(bags, n)
        times = np.full(n, rounds)
        times[rng.permutation(n)[:rest]] += 1
        rows = []
        for i in np.flatnonzero(times):
            size, count = self._sizes[first + i], self._patches_per_bag * times[i]
            positions = rng.choice(size, count, replace=bool(size < count))
            rows.append(self._members[self._starts[first + i] + positions])
        return np.concatenate(rows)


def _subsets(rng: np.random.Generator, sizes: np.ndarray, m: int) -> np.ndarray:
    """For each size s, m distinct numbers below s (repeats allowed if s < m), int64 [c, m].

    Floyd's algorithm for all sizes at once: the j-th draw is uniform below s - m + j + 1. A number
    that was drawn before is replaced by the largest number of this range, which cannot have been
    drawn before.
    """
    out = np.empty((len(sizes), m), np.int64)
    small = sizes < m
    for j in range(m):
        last = np.where(small, sizes - 1, sizes - m + j)
        draw = rng.integers(0, last + 1)
        repeated = (out[:, :j] == draw[:, None]).any(axis=1) & ~small
        out[:, j] = np.where(repeated, last, draw)
    return out


def uniform_plan(n: int, global_batch_size: int, total_steps: int, seed: int) -> UniformPlan:
    """Global batches that go through all n patches in a new random order every epoch.

    Raises:
      UserError: there are fewer patches than in a batch.
    """
    _check_sizes(global_batch_size, total_steps)
    if n < global_batch_size:
        raise UserError(
            f"the store holds {n:,} patches, fewer than one batch of {global_batch_size:,}; "
            f"add pages or lower --config.global_batch_size to {n} or less"
        )
    return UniformPlan(n, global_batch_size, total_steps, seed)


def m_per_class_plan(
    labels: np.ndarray, patches_per_class: int, global_batch_size: int, total_steps: int, seed: int
) -> MPerClassPlan:
    """Global batches of some classes with `patches_per_class` patches each.

    The published code draws the same way, an epoch at a time (`test_sampler.py`).

    Args:
      labels: int [n], class of each patch; patches with a negative label are never drawn.

    Raises:
      UserError: the batch is not a whole number of classes, or the labels have too few classes.
    """
    _check_sizes(global_batch_size, total_steps)
    _check_division(global_batch_size, patches_per_class)
    plan = MPerClassPlan(
        np.asarray(labels), patches_per_class, global_batch_size, total_steps, seed
    )
    _check_classes(plan.num_classes, global_batch_size, patches_per_class)
    return plan


def bag_plan(
    labels: np.ndarray,
    pages: np.ndarray,
    patches_per_bag: int,
    bags_per_class: int,
    global_batch_size: int,
    total_steps: int,
    seed: int,
) -> BagPlan:
    """Global batches of several classes with `bags_per_class` bags each.

    Args:
      labels: int [n], class of each patch; patches with a negative label are never drawn.
      pages: int [n], page of each patch.
      patches_per_bag: number of patches of a bag, all from one page.
      bags_per_class: number of bags of a class.
      global_batch_size: a multiple of patches_per_bag * bags_per_class.

    Raises:
      UserError: the batch is not a whole number of classes, or there are fewer than two classes.
    """
    _check_sizes(global_batch_size, total_steps)
    _check_division(global_batch_size, patches_per_bag * bags_per_class)
    plan = BagPlan(
        np.asarray(labels),
        np.asarray(pages),
        patches_per_bag,
        bags_per_class,
        global_batch_size,
        total_steps,
        seed,
    )
    if plan.num_classes < 2:
        raise UserError(
            f"the labels have {plan.num_classes} classes, but training needs at least two: add "
            "pages, or change --config.labels"
        )
    return plan


def _check_sizes(global_batch_size: int, total_steps: int) -> None:
    if global_batch_size < 1 or total_steps < 1:
        raise UserError(
            "--config.global_batch_size and --config.total_steps must be at least 1, not "
            f"{global_batch_size} and {total_steps}"
        )


def _check_division(global_batch_size: int, patches_per_class: int) -> None:
    if patches_per_class < 1 or global_batch_size % patches_per_class:
        raise UserError(
            f"a batch of {global_batch_size} is not a whole number of classes with "
            f"{patches_per_class} patches each; change --config.global_batch_size or "
            "--config.patches_per_class"
        )


def _check_classes(num_classes: int, global_batch_size: int, patches_per_class: int) -> None:
    needed = global_batch_size // patches_per_class
    if num_classes < needed:
        raise UserError(
            f"a batch of {global_batch_size} with {patches_per_class} patches per class needs "
            f"{needed} classes, the labels have {num_classes}; lower --config.global_batch_size to "
            f"{num_classes * patches_per_class} or less, raise --config.patches_per_class, or add "
            "pages"
        )


def _checked(step: int, plan: Plan) -> int:
    if not 0 <= step < len(plan):
        raise IndexError(f"step {step} is not in [0, {len(plan)})")
    return step
