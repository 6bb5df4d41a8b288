"""Reads this process's part of the batches of a plan (plans.py) in advance, in threads."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from saghog_jax.input_pipeline.batches.plans import Plan
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.store.reader import Store


class Batches:
    """Iterator over this process's rows of the batches of a plan; to be closed after use."""

    def __init__(self, iterator: Any) -> None:
        """Use `batches`."""
        self._iterator = iterator

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    def close(self) -> None:
        """Ends the reading threads."""
        self._iterator.close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def local_rows(global_batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of every global batch that a process reads. The processes share all rows evenly.

    Raises:
      UserError: the batch size is not a multiple of the number of processes.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} is not in [0, {process_count})")
    if global_batch_size % process_count:
        raise UserError(
            f"--config.global_batch_size={global_batch_size} does not divide evenly among "
            f"{process_count} processes"
        )
    size = global_batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)


def batches(
    store: Store,
    plan: Plan,
    start_step: int,
    process_index: int,
    process_count: int,
    threads: int,
    prefetch: int,
    labels: np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the plan's batches from `start_step` on, read in advance by threads.

    Args:
      threads: number of reading threads; 0: the caller's thread reads.
      prefetch: number of batches read in advance.
      labels: int [n], class of each patch of the store.

    Returns:
      an iterator (with `close()`, and a context manager) of `patches` uint8 [b, s, s, 3], `ink`
      uint8 [b, s*s/8] and, with labels, `label` int32 [b]; b is the local batch size.
    """
    # Imported here because grain imports jax, which processes that cut pages must not import.
    import grain

    rows = local_rows(plan.global_batch_size, process_index, process_count)
    if not 0 <= start_step <= len(plan):
        raise ValueError(f"start_step {start_step} is not in [0, {len(plan)}]")
    if start_step == len(plan):
        return Batches(_Finished())

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        local = indices[rows]
        batch = store.gather(local)
        if labels is not None:
            batch["label"] = labels[local].astype(np.int32)
        return batch

    dataset = grain.MapDataset.source(plan)[start_step:].map(read)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return Batches(iter(dataset.to_iter_dataset(options)))


class _Finished:
    """An iterator without elements that can be closed."""

    def __next__(self) -> dict[str, np.ndarray]:
        raise StopIteration

    def close(self) -> None:
        """Does nothing."""
