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


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps: expected at least 1, got 0"),
        ({"steps": 2.5}, TypeError, "steps: expected an integer, got float"),
        ({"rounds": True}, TypeError, "rounds: expected an integer, got bool"),
        ({"draws": -1}, ValueError, "draws: .*got -1"),
        ({"surrogate_steps": -1}, ValueError, "surrogate_steps: .*got -1"),
        ({"alpha": -0.1}, ValueError, "alpha: .*got -0.1"),
        ({"alpha": 1.5}, ValueError, r"alpha: expected a step in \[0, 1\] image units.*got 1.5"),
        ({"gamma": float("nan")}, ValueError, "gamma: .*got nan"),
        ({"surrogate_lr": float("inf")}, ValueError, "surrogate_lr: .*got inf"),
        ({"alpha": "big"}, TypeError, "alpha: expected a number, got str"),
        ({"overlap": 100}, ValueError, "overlap: .*half of tile .*got 100"),
        ({"eps": 8}, ValueError, "eps"),
        ({"seed": "x"}, TypeError, "seed: expected an integer, got str"),
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
