import json

import numpy as np
import pytest

from udp_fast.methods import Settings
from udp_fast.ops import Budget


def test_defaults_by_method():
    assert Settings.for_method("eudp").gamma == 1.0
    assert Settings.for_method("udp").gamma == 0.0
    assert Settings.for_method("eudp", steps=3, eps="4/255").eps == Budget.linf("4/255")


def test_step_size_follows_the_budget():
    assert Settings(eps="4/255").step_size == Settings(eps="8/255").step_size / 2 > 0
    assert Settings(alpha=0.01).step_size == 0.01


def test_numpys_numbers_become_pythons():
    settings = Settings(
        steps=np.int64(2), seed=np.uint8(7), gamma=np.float32(0.5), alpha=np.int64(0)
    )
    assert (settings.steps, settings.seed, settings.gamma, settings.alpha) == (2, 7, 0.5, 0.0)
    assert json.loads(json.dumps([settings.steps, settings.seed, settings.gamma])) == [2, 7, 0.5]


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps: got 0, expected at least 1"),
        ({"steps": 2.5}, TypeError, "steps: got float, expected an integer"),
        ({"rounds": True}, TypeError, "rounds: got bool, expected an integer"),
        ({"draws": -1}, ValueError, "draws: .*got -1"),
        ({"surrogate_steps": -1}, ValueError, "surrogate_steps: .*got -1"),
        ({"alpha": -0.1}, ValueError, "alpha: .*got -0.1"),
        ({"alpha": 1.5}, ValueError, r"alpha: got 1.5, expected a step in \[0, 1\] image units"),
        ({"gamma": float("nan")}, ValueError, "gamma: .*got nan"),
        ({"surrogate_lr": float("inf")}, ValueError, "surrogate_lr: .*got inf"),
        ({"alpha": "big"}, TypeError, "alpha: got str, expected a number"),
        ({"gamma": True}, TypeError, "gamma: got bool, expected a number"),
        ({"steps": np.True_}, TypeError, "steps: got bool"),
        ({"overlap": 100}, ValueError, "overlap: got 100, .*half of tile"),
        ({"eps": 8}, ValueError, "eps"),
        ({"seed": "x"}, TypeError, "seed: got str, expected an integer"),
        ({"colour": 1}, ValueError, "settings: unknown colour; known are alpha"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else None,
)
def test_errors_name_the_setting(overrides, error, words):
    with pytest.raises(error, match=words):
        Settings.for_method("eudp", **overrides)


def test_unknown_method():
    with pytest.raises(ValueError, match="method: got 'nope', expected one of"):
        Settings.for_method("nope")
