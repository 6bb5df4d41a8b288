"""Plans: which patches make up the global batch of each step.

A plan is a random-access source: plan[step] holds the indices of the global batch of that step, a
pure function of the plan's arguments and the step. So the batches are the same for every number of
threads and processes and after every restart, and the position in the data is the step itself.
"""

import threading
from collections import Counter
from typing import Protocol

import numpy as np

from saghog_jax.input_pipeline.errors import UserError

# Epochs whose order a uniform plan keeps: a batch can span two, and threads run ahead of it.
CACHED_EPOCHS = 2


class Plan(Protocol):
    """Random access to the global batches of a run."""

    global_batch_size: int

    def __len__(self) -> int:
        """Steps of the run."""

    def __getitem__(self, step: int) -> np.ndarray:
        """Indices of the global batch of `step`, int64 [global_batch_size]."""


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
    """A plan over the elements `chosen` [n] of a store, from one over n."""

    def __init__(self, plan: Plan, chosen: np.ndarray) -> None:
        self.global_batch_size = plan.global_batch_size
        self._plan, self._chosen = plan, chosen

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, step: int) -> np.ndarray:
        return self._chosen[self._plan[step]]


class MPerClassPlan:
    """Each batch: classes drawn without replacement, then `patches_per_class` patches of each.

    Patches of a class are drawn without replacement, with replacement only where the class has
    fewer than `patches_per_class`.
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
        # Members of each class side by side: class c is members[starts[c] : starts[c] + sizes[c]].
        drawn = np.flatnonzero(labels >= 0)
        self._members = drawn[np.argsort(labels[drawn], kind="stable")]
        _, self._starts, self._sizes = np.unique(
            labels[self._members], return_index=True, return_counts=True
        )

    @property
    def num_classes(self) -> int:
        """Classes that have at least one patch."""
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
    """Each batch: classes drawn without replacement, then `bags` bags of `bag` patches of each.

    Where there are fewer classes than a batch holds they are drawn over again: some give twice as
    many bags, or more. The patches of a bag are of one page and lie in a row. The pages of a class
    are drawn without replacement, over again where it has fewer than bags are drawn; bags of one
    page have no patch in common unless the page has too few.
    """

    def __init__(
        self,
        labels: np.ndarray,
        pages: np.ndarray,
        bag: int,
        bags: int,
        global_batch_size: int,
        total_steps: int,
        seed: int,
    ) -> None:
        """Use `bag_plan`."""
        self.global_batch_size = global_batch_size
        self._bag, self._bags = bag, bags
        self._total_steps = total_steps
        self._seed = seed
        # The patches of a class on a page are members[starts[i] : starts[i] + sizes[i]]; class c
        # has those of firsts[c] <= i < firsts[c + 1].
        drawn = np.flatnonzero(labels >= 0)
        order = np.lexsort((pages[drawn], labels[drawn]))
        self._members = drawn[order]
        label, page = labels[self._members], pages[self._members]
        begins = np.r_[True, (np.diff(label) != 0) | (np.diff(page) != 0)][: len(label)]
        self._starts = np.flatnonzero(begins)
        self._sizes = np.diff(np.r_[self._starts, len(label)])
        begins = np.r_[True, np.diff(label[self._starts]) != 0][: len(self._starts)]
        self._firsts = np.r_[np.flatnonzero(begins), len(self._starts)]

    @property
    def num_classes(self) -> int:
        """Classes that have at least one patch."""
        return len(self._firsts) - 1

    def __len__(self) -> int:
        return self._total_steps

    def __getitem__(self, step: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, _checked(step, self)])
        count = self.global_batch_size // (self._bag * self._bags)
        rounds, rest = divmod(count, self.num_classes)
        drawn = [*range(self.num_classes)] * rounds
        drawn += rng.choice(self.num_classes, rest, replace=False).tolist()
        return np.concatenate(
            [self._of_class(rng, c, self._bags * times) for c, times in Counter(drawn).items()]
        )

    def _of_class(self, rng: np.random.Generator, c: int, bags: int) -> np.ndarray:
        """`bags` times `bag` patches of a class, int64 [bags * bag]."""
        first, n = self._firsts[c], self._firsts[c + 1] - self._firsts[c]
        # Whole rounds over its pages, then some of them.
        rounds, rest = divmod(bags, n)
        times = np.full(n, rounds)
        times[rng.permutation(n)[:rest]] += 1
        rows = []
        for i in np.flatnonzero(times):
            size, wanted = self._sizes[first + i], self._bag * times[i]
            positions = rng.choice(size, wanted, replace=bool(size < wanted))
            rows.append(self._members[self._starts[first + i] + positions])
        return np.concatenate(rows)


def _subsets(rng: np.random.Generator, sizes: np.ndarray, m: int) -> np.ndarray:
    """For each size s, m distinct numbers below s (repeats allowed where s < m), int64 [c, m].

    Floyd's algorithm for all sizes at once: the j-th draw is uniform below s - m + j + 1, and a
    number drawn before is replaced by the largest one then allowed, which cannot have been drawn.
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
      UserError: fewer patches than a batch.
    """
    _check_sizes(global_batch_size, total_steps)
    if n < global_batch_size:
        raise UserError(
            f"the store holds {n:,} patches, fewer than one batch of {global_batch_size:,}; "
            f"give more pages or lower --config.global_batch_size to {n} or less"
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
    bag: int,
    bags: int,
    global_batch_size: int,
    total_steps: int,
    seed: int,
) -> BagPlan:
    """Global batches of `global_batch_size / (bag * bags)` classes with `bags` bags each.

    Args:
      labels: int [n], class of each patch; patches with a negative label are never drawn.
      pages: int [n], page of each patch.
      bag: patches of a bag, all of one page.
      bags: bags of a class.

    Raises:
      UserError: the batch is not a whole number of classes, or there is nothing to tell apart.
    """
    _check_sizes(global_batch_size, total_steps)
    _check_division(global_batch_size, bag * bags)
    plan = BagPlan(
        np.asarray(labels), np.asarray(pages), bag, bags, global_batch_size, total_steps, seed
    )
    if plan.num_classes < 2:
        raise UserError(
            f"the labels have {plan.num_classes} classes; to tell hands apart there must be two at "
            "least: give more pages, or other --config.labels"
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


def _check_classes(found: int, global_batch_size: int, patches_per_class: int) -> None:
    needed = global_batch_size // patches_per_class
    if found < needed:
        raise UserError(
            f"a batch of {global_batch_size} with {patches_per_class} patches a class needs "
            f"{needed} classes, the labels have {found}; lower --config.global_batch_size to "
            f"{found * patches_per_class} or less, raise --config.patches_per_class, or give more "
            "pages"
        )


def _checked(step: int, plan: Plan) -> int:
    if not 0 <= step < len(plan):
        raise IndexError(f"step {step} is not in [0, {len(plan)})")
    return step
