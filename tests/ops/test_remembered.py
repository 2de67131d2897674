"""Which earlier call is found again, and where none is."""

from __future__ import annotations

import contextlib
import gc
import importlib
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from udp_fast.backends import dispatch
from udp_fast.backends.cpu import native
from udp_fast.ops import Budget, attention, pgd_step_, pgd_step_multi_
from udp_fast.ops import remembered as module
from udp_fast.ops.remembered import Remembered

pytestmark = pytest.mark.usefixtures("remembered")


def run(*args):
    return args


def test_constants_and_tensors_are_what_a_call_is_found_by():
    calls = Remembered(constants=2)
    a, b = torch.zeros(2, 3), torch.ones(2, 3)
    assert calls.find(1.0, "sign", a, b) is None
    calls.keep(run, 1.0, "sign", a, b)
    assert calls.find(1.0, "sign", b, a) is run
    assert calls.find(1, "sign", a, b) is run  # which means the same
    for other in [
        (2.0, "sign", a, b),
        (1.0, "raw", a, b),
        (True, "sign", a, b),
        (1.0, "sign", a, b, a),
        (1.0, "sign", a),
        (1.0, "sign"),
        (1.0,),
        (),
        (1.0, "sign", a, None),
        (1.0, "sign", None, a),
        (1.0, ["sign"], a, b),
        (1.0, "sign", a, a),
        (1.0, "sign", a, b[:1]),
        (1.0, "sign", a, b.half()),
        (1.0, "sign", a, b.t().contiguous().t()),
        (1.0, "sign", a, torch.nn.Parameter(b)),
    ]:
        assert calls.find(*other) is None


def test_a_constant_is_a_number_a_name_a_dtype_a_budget_or_a_tuple_of_them():
    calls, x = Remembered(constants=1), torch.zeros(2)
    constants = [
        *(None, True, False, 0, 2, 1.5, "a", "True", torch.float16, Budget(0.5), Budget(0.25)),
        *((), (0, 1), (True, 1), (0.0, (2.0, "b")), (None,)),
    ]
    runs = [lambda i=i: i for i in range(len(constants))]
    for one, constant in zip(runs, constants, strict=True):
        calls.keep(one, constant, x)
    for one, constant in zip(runs, constants, strict=True):
        assert calls.find(constant, x) is one
    for unfit in ([], {}, 1j, x, (x,), object(), ([],)):
        calls.keep(run, unfit, x)
        assert calls.find(unfit, x) is None
    assert len(calls._runs) == len(constants)


def counting():
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    return Mode()


@contextlib.contextmanager
def a_variable(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("UDP_FAST_LOG_DISPATCH", "1")
        yield


SURROUNDINGS = {
    "grad mode": lambda _: torch.no_grad(),
    "inference mode": lambda _: torch.inference_mode(),
    "autocast": lambda _: torch.autocast("cpu"),
    "a dispatch mode": lambda _: counting(),
    "a mode of fake tensors": lambda _: FakeTensorMode(allow_non_fake_inputs=True),
    "forward-mode autograd": lambda _: forward_ad.dual_level(),
    "explain": lambda _: dispatch.intercept(),
    "a variable": a_variable,
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_surroundings_that_change_what_is_done_are_no_likeness(name, monkeypatch):
    calls, x = Remembered(constants=0), torch.zeros(2)
    # Whether autograd records is in the key; here the rest is asked for.
    with torch.no_grad() if name == "inference mode" else contextlib.nullcontext():
        calls.keep(run, x)
        with SURROUNDINGS[name](monkeypatch):
            assert calls.find(x) is None
        assert calls.find(x) is run


@pytest.mark.parametrize("transform", ["vmap", "grad", "functionalize", "make_fx", "trace"])
def test_what_is_traced_or_transformed_is_neither_found_nor_kept(transform):
    calls, x = Remembered(constants=0), torch.zeros(2)
    calls.keep(run, x)
    found = []

    def function(y):
        found.append(calls.find(x))
        found.append(calls.find(y))
        other.keep(run, x)
        return (y * 2).sum()

    other = Remembered(constants=0)
    if transform == "trace":
        torch.jit.trace(function, (x,), check_trace=False)
    elif transform == "make_fx":
        make_fx(function)(x)
    elif transform == "vmap":
        torch.func.vmap(function)(torch.zeros(3, 2))
    else:
        getattr(torch.func, transform)(function)(x)
    assert found
    assert not any(found)
    assert not other._runs
    assert calls.find(x) is run


@pytest.mark.parametrize("first", [torch.inference_mode, lambda: torch.autocast("cpu")])
def test_torch_is_believed_whatever_the_first_call_is_made_under(first):
    module._tells_apart.cache_clear()
    calls, x = Remembered(constants=0), torch.zeros(2)
    with first():
        calls.keep(run, x)
        assert calls.find(x) is run
    assert calls.find(x) is None


def test_maximize_may_be_a_word(remembered):
    """Of which bool() makes a direction, as of anything."""
    x, grad = torch.full((1, 4), 0.5), torch.ones(1, 4)
    for _ in range(2):
        for maximize, sign in ((False, -1.0), ("False", 1.0), (True, 1.0)):
            delta = torch.zeros(1, 4)
            pgd_step_(delta, grad, x, alpha=0.25, eps=1.0, maximize=maximize)
            assert torch.equal(delta, torch.full((1, 4), 0.25 * sign))


def test_what_is_kept_under_a_mode_would_not_be_found_under_the_next():
    calls, x = Remembered(constants=0), torch.zeros(2)
    with counting():
        calls.keep(run, x)
    assert not calls._runs


def test_without_the_native_module_nothing_is_remembered(monkeypatch):
    monkeypatch.setattr(native, "MISSING", "not built")
    calls, x = Remembered(constants=0), torch.zeros(2)
    calls.keep(run, x)
    assert calls.find(x) is None
    assert not calls._runs


def test_an_error_of_the_question_is_raised_and_not_swallowed():
    calls, x = Remembered(constants=0), torch.zeros(2)
    calls.keep(run, x)
    (of_key,) = calls._runs.values()

    def broken(*tensors):
        of_key.clear()  # nor is what it looks at pulled away under it
        raise RuntimeError("broken")

    of_key[:] = [(broken, run)]
    with pytest.raises(RuntimeError, match="broken"):
        calls.find(x)
    assert calls.find(x) is None


def test_what_is_forgotten_is_freed():
    """The lookup holds its dictionary, and neither a key nor an answer longer than a call."""

    def kept():
        return None

    calls, x = Remembered(constants=1), torch.zeros(2)
    calls.keep(kept, (1.0, "a"), x)
    for _ in range(10):
        assert calls.find((1.0, "a"), x) is kept
        assert calls.find((1.0, "b"), x) is None
    gone = weakref.ref(kept)
    calls._runs.clear()
    del kept
    gc.collect()
    assert gone() is None


def test_the_native_lookup_names_what_it_wants():
    with pytest.raises(TypeError, match="expected a tuple of all that is asked"):
        native.module().remembered((1, 2))


def test_a_second_derivative_is_refused_of_a_remembered_call_as_well():
    q, k, v = (torch.rand(1, 2, 40, 32, requires_grad=True) for _ in range(3))
    for _ in range(2):
        attention(q, k, v).sum().backward()
    for _ in range(2):
        (dq,) = torch.autograd.grad(attention(q, k, v).sum(), q, create_graph=True)
        with pytest.raises(RuntimeError):
            dq.sum().backward()


def test_a_list_of_another_length_is_checked_anew(remembered):
    xs = [torch.rand(2, 3) for _ in range(6)]
    deltas = [torch.zeros(2, 3) for _ in range(2)]
    options = {"alpha": 0.5, "eps": 1.0}
    alone = [torch.zeros(2, 3) for _ in range(2)]
    for _ in range(2):
        advs, skipped = pgd_step_multi_(deltas, xs[:2], xs[2:4], **options)
    for _ in range(2):
        steps = [pgd_step_(*one, **options) for one in zip(alone, xs[:2], xs[2:4], strict=True)]
    assert len([key for key in remembered if key[1] == 6]) == 1
    assert all(map(torch.equal, [*deltas, *advs], [*alone, *(s.adv for s in steps)]))
    assert skipped.tolist() == [0, 0]
    with pytest.raises(ValueError, match="grads: got 1 tensors, expected 2"):
        pgd_step_multi_(deltas, xs[:1], xs[1:4], **options)
    with pytest.raises(TypeError, match="deltas: got Tensor"):
        pgd_step_multi_(torch.zeros(2, 2, 3), xs[:2], xs[2:4], **options)
    with pytest.raises(ValueError, match=r"deltas\[1\]: got a tensor for the second time"):
        pgd_step_multi_([deltas[0]] * 2, xs[:2], xs[2:4], **options)


def test_a_remembered_list_is_not_checked_and_counts_as_written(monkeypatch):
    op = importlib.import_module("udp_fast.ops.pgd_step_multi")
    deltas, xs = [torch.zeros(2, 3), torch.zeros(5)], [torch.rand(2, 3), torch.rand(5)]
    grads = [torch.ones(2, 3), torch.ones(5)]
    pgd_step_multi_(deltas, grads, xs, alpha=0.25, eps=1.0)
    monkeypatch.setattr(op, "_check_images", None)
    before = deltas[0]._version
    pgd_step_multi_(deltas, grads, tuple(xs), alpha=0.25, eps=1.0)
    assert deltas[0]._version > before
    assert torch.equal(deltas[1], torch.full((5,), 0.5).minimum(1 - xs[1]))
