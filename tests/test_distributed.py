"""Helpers of several processes, where there is one; tests/test_hosts.py starts several."""

import numpy as np
import pytest

from configs import common
from input_pipeline.errors import UserError
from saghog_jax import distributed


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
