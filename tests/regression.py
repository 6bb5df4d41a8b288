"""A small problem for the tests of the loop; also a program, for tests that need processes.

    python tests/regression.py FOLDER CHANGES [TROUBLE]

CHANGES are JSON, of fields of `config()`; TROUBLE is {"step": s, "process": i, "kind": k} with k
`raise`, `kill`, `full` (as soon as the path "after" exists, no file of more than 300 bytes can be
written), or {"pause": seconds a step}.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from saghog_jax.configs import training
from saghog_jax.input_pipeline.batches.loader import local_rows
from saghog_jax.input_pipeline.console import show_messages
from saghog_jax.main import execute
from saghog_jax.training import optim
from saghog_jax.training.loop import Run


class Batches:
    """This process's rows of batches that are a function of the step."""

    def __init__(self, step):
        self.step, self.closed = step, False

    def __next__(self):
        rng = np.random.default_rng(self.step)
        self.step += 1
        rows = local_rows(16, jax.process_index(), jax.process_count())
        return {"x": rng.normal(size=(16, 8)).astype(np.float32)[rows]}

    def close(self):
        self.closed = True


class Regression:
    """A linear map learns to undo another one; its loss is noisy so that the key matters."""

    kind = "mae"
    mean_of_rows = True

    held_out = None

    def __init__(self, config, spoil_step=None):
        self.tx = optim.make_optimizer(config.optim, config.total_steps)
        self.spoil_step = spoil_step
        self.opened = []

    def init(self, rng):
        kernel = jax.random.normal(rng, (8, 16))
        encoder = {"kernel": kernel, "bias": jnp.zeros(16)}
        return {"params": {"encoder": encoder}, "batch_stats": {"seen": jnp.zeros(())}}

    def warm_start(self, variables):
        return variables

    def prepare(self, batch, rng):
        x = batch["x"]
        if self.spoil_step is not None:
            x = jnp.where(jnp.all(x == Batches(self.spoil_step).__next__()["x"]), jnp.nan, x)
        return {"x": x, "noise": 0.1 * jax.random.normal(rng, x.shape)}

    def outputs(self, variables, rows):
        params, seen = variables["params"]["encoder"], variables["batch_stats"]["seen"]
        out = (rows["x"] + rows["noise"]) @ params["kernel"] + params["bias"]
        errors = jnp.mean((out - jnp.tile(rows["x"], 2)) ** 2, axis=1)
        return errors, {"batch_stats": {"seen": seen + jnp.mean(rows["x"])}}

    def loss(self, variables, outputs, rows):
        return jnp.mean(outputs)

    def pictures(self, variables):
        return []

    def batches(self, start_step):
        self.opened.append(Batches(start_step))
        return self.opened[-1]


def config(**changes):
    config = ConfigDict()
    training.run_config(config)
    config.optim = training.optim_config()
    config.stage = "pretrain"
    config.global_batch_size, config.total_steps = 16, 12
    config.log_every, config.checkpoint_every = 4, 5
    config.optim.warmup_steps, config.optim.learning_rate = 3, 0.05
    config.update(changes)
    return config


class TroubledBatches(Batches):
    def __init__(self, step, trouble):
        super().__init__(step)
        self.trouble = trouble

    def __next__(self):
        time.sleep(self.trouble.get("pause", 0))
        here = self.trouble.get("process", 0) == jax.process_index()
        if here and self.step == self.trouble.get("step"):
            if self.trouble["kind"] == "raise":
                raise RuntimeError("bang")
            if self.trouble["kind"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            while not Path(self.trouble["after"]).exists():
                time.sleep(0.01)
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
        return super().__next__()


def main(folder, changes, trouble="{}"):
    # As the command line does.
    show_messages()
    logging.set_verbosity(logging.FATAL)
    c = config()
    c.log_every = 1
    c.update_from_flattened_dict(json.loads(changes))
    task = None

    def work():
        nonlocal task
        task = Regression(c)
        task.batches = lambda step: TroubledBatches(step, json.loads(trouble))
        run = Run(c, Path(folder), "mae")
        if not run.finished:
            run.fit(task)
        return 0

    execute(c, work)


if __name__ == "__main__":
    main(*sys.argv[1:])
