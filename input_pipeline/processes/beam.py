"""Runs jobs with Apache Beam: on one machine, or on Flink, Spark or Dataflow (extra `[beam]`).

Workers read pages and write shards through the file system. On a cluster, all machines must mount
the file system of the pages and of the store's root under the same path, and must have the project
installed. A shard may be built twice, by a retry or to replace a slow worker: the bytes are equal,
and the first shard is kept.
"""

import functools
import shlex
from collections.abc import Callable, Iterator, Sequence

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.processes.workers import Job, Result, keep_to_one_thread, one_thread


def _run_one(function: Callable[[Job], Result], job: Job) -> None:
    keep_to_one_thread()
    function(job)


def run_beam_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], options: str
) -> Iterator[Job]:
    """Runs function(job) for every job in one Beam pipeline, then yields the jobs.

    Args:
      function: importable by name on the workers; its results are discarded.
      options: Beam's pipeline options as on a command line, such as
        `--runner=DirectRunner --direct_running_mode=multi_processing --direct_num_workers=4` or
        `--runner=FlinkRunner --flink_master=HOST:8081 --environment_type=LOOPBACK`.

    Raises:
      UserError: Beam is not installed.
      RuntimeError: the pipeline failed; the files of finished jobs are kept.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(
            f"prepare's field `beam` needs Apache Beam ({error}); "
            "`pip install -e '.[beam]'` installs it, and an empty field uses a pool of processes"
        ) from None
    if not jobs:
        return
    pipeline_options = PipelineOptions(shlex.split(options))
    # Some runners run the jobs in this process.
    with one_thread(), beam.Pipeline(options=pipeline_options) as pipeline:
        _ = (
            pipeline
            | "Jobs" >> beam.Create(list(jobs))
            # Without this step one worker would run all jobs.
            | "Spread" >> beam.Reshuffle()
            | "Run" >> beam.Map(functools.partial(_run_one, function))
        )
    yield from jobs
