"""Helpers of several processes in a single process; test_hosts.py starts several processes."""

import logging
import threading
import time

import numpy as np
import pytest

from saghog_jax.configs import common
from saghog_jax.devices import distributed
from saghog_jax.input_pipeline.errors import UserError


def test_helpers_of_a_single_process_are_the_identity():
    for array in (np.arange(3) + 2**40, np.array(["a", "ü"]), np.float64(0.1)):
        gathered = distributed.allgather(array)
        assert gathered.shape == (1, *array.shape)
        np.testing.assert_array_equal(distributed.broadcast(array), array)
    assert distributed.is_main()
    assert distributed.main_first(lambda: 7) == 7
    distributed.barrier("alone")
    distributed.initialize(common.distributed_config())
    assert not distributed.active()


@pytest.mark.parametrize(("process", "output"), [(0, "a line\n"), (1, "")])
def test_only_the_main_process_logs(process, output, monkeypatch, capsys):
    monkeypatch.setattr(distributed.jax, "process_index", lambda: process)
    distributed.log_once(logging.getLogger("saghog_jax.test"), "a line")
    assert capsys.readouterr().out == output


class Coordinator:
    """A coordinator with one heartbeat of process 1."""

    def key_value_set(self, key, value, allow_overwrite):
        pass

    def key_value_dir_get(self, folder):
        return [(f"{folder}1", "1")] if folder == "saghog/alive/" else []


def test_a_process_without_heartbeats_is_dead_after_the_configured_time(monkeypatch, capsys):
    arguments, ended = {}, threading.Event()

    def leave(status):
        arguments["status"] = status
        distributed._watch.stop()
        ended.set()

    monkeypatch.setattr(distributed.jax.distributed, "initialize", arguments.update)
    monkeypatch.setattr(distributed, "_client", Coordinator)
    monkeypatch.setattr(distributed, "_watch", None)
    monkeypatch.setattr(distributed, "_exit", leave)
    config = common.distributed_config()
    config.update({"mode": "explicit", "coordinator": "a:1", "num_processes": 2,
                   "start_timeout": 7, "dead_after": 1})  # fmt: skip
    start = time.monotonic()
    distributed.initialize(config)
    assert ended.wait(20)
    assert time.monotonic() - start > 1
    assert arguments["status"] == distributed.PEER_FAILED
    assert "process 1 has sent no heartbeat for 1 s" in capsys.readouterr().err
    assert arguments["initialization_timeout"] == 7
    assert arguments["heartbeat_timeout_seconds"] == 31
    assert (arguments["coordinator_address"], arguments["num_processes"]) == ("a:1", 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "on"}, "unknown config.distributed.mode 'on', known: off, auto, explicit"),
        ({"mode": "explicit"}, "needs coordinator=HOST:PORT"),
        ({"mode": "explicit", "coordinator": "a:1", "process_id": 1}, "not 'a:1', 1 and 1"),
    ],
)
def test_wrong_fields_are_named(changes, message):
    config = common.distributed_config()
    config.update(changes)
    with pytest.raises(UserError, match=message):
        distributed.initialize(config)
