"""Helpers of several processes, where there is one; tests/devices/test_hosts.py starts several."""

import threading
import time

import numpy as np
import pytest

from saghog_jax.configs import common
from saghog_jax.devices import distributed
from saghog_jax.input_pipeline.errors import UserError


def test_alone_every_helper_is_the_identity():
    for array in (np.arange(3) + 2**40, np.array(["a", "ü"]), np.float64(0.1)):
        gathered = distributed.allgather(array)
        assert gathered.shape == (1, *array.shape)
        np.testing.assert_array_equal(distributed.broadcast(array), array)
    assert distributed.is_main()
    assert distributed.main_first(lambda: 7) == 7
    distributed.barrier("alone")
    distributed.initialize(common.distributed_config())
    assert not distributed.active()


@pytest.mark.parametrize(("process", "said"), [(0, "a line\n"), (1, "")])
def test_lines_are_said_by_the_main_process_alone(process, said, monkeypatch, capsys):
    monkeypatch.setattr(distributed.jax, "process_index", lambda: process)
    distributed.say("a line")
    assert capsys.readouterr().out == said


class Coordinator:
    """What a process sees of the others: the second one is silent after a first sign of life."""

    def key_value_set(self, key, value, allow_overwrite):
        pass

    def key_value_dir_get(self, folder):
        return [(f"{folder}1", "1")] if folder == "saghog/alive/" else []


def test_who_gives_no_sign_for_as_long_as_the_config_says_is_dead(monkeypatch, capsys):
    given, ended = {}, threading.Event()

    def leave(status):
        given["status"] = status
        distributed._watch.stop()
        ended.set()

    monkeypatch.setattr(distributed.jax.distributed, "initialize", given.update)
    monkeypatch.setattr(distributed, "_client", Coordinator)
    monkeypatch.setattr(distributed, "_watch", None)
    monkeypatch.setattr(distributed, "_exit", leave)
    config = common.distributed_config()
    config.update({"mode": "explicit", "coordinator": "a:1", "num_processes": 2,
                   "start_timeout": 7, "dead_after": 1})  # fmt: skip
    began = time.monotonic()
    distributed.initialize(config)
    assert ended.wait(20)
    assert time.monotonic() - began > 1
    assert given["status"] == distributed.PEER_FAILED
    assert "process 1 has given no sign for 1 s" in capsys.readouterr().err
    assert (given["initialization_timeout"], given["heartbeat_timeout_seconds"]) == (7, 31)
    assert (given["coordinator_address"], given["num_processes"]) == ("a:1", 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "on"}, "unknown config.distributed.mode 'on', known: off, auto, explicit"),
        ({"mode": "explicit"}, "needs coordinator=HOST:PORT"),
        ({"mode": "explicit", "coordinator": "a:1", "process_id": 1}, "not 'a:1', 1 and 1"),
    ],
)
def test_mistakes_are_named(changes, message):
    config = common.distributed_config()
    config.update(changes)
    with pytest.raises(UserError, match=message):
        distributed.initialize(config)
