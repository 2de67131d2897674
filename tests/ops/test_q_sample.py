"""The contract of q_sample, judged in float64, on every backend."""

from __future__ import annotations

import pytest
import torch
from cases import F32, F64, FLOATS, LAYOUTS, Stop, floats, same_bits, shapes, timesteps, ulp
from hypothesis import given
from hypothesis import strategies as st

from udp_fast.backends.reference.q_sample import q_sample as reference
from udp_fast.ops import noise_key, q_sample

ENDS = {"diffusion": (0.9999, 0.0), "flow": (0.0, 1.0)}  # nearly clean, and pure noise


def table(path):
    return torch.linspace(*ENDS[path], 50)


calls = st.fixed_dictionaries(
    {
        "shape": shapes,
        "seed": st.integers(0, 2**32),
        "layouts": st.tuples(*[st.sampled_from(LAYOUTS)] * 2),
        "dtype": st.sampled_from(FLOATS),
        "out_dtype": st.sampled_from([*FLOATS, None]),
        "noise_dtype": st.sampled_from([*FLOATS, None]),  # None: drawn from a key
        "path": st.sampled_from(list(ENDS)),
        "return_noise": st.booleans(),
        "extremes": st.booleans(),
    }
)


def build(c):
    shape, seed = c["shape"], c["seed"]
    x = floats(shape, seed, c["dtype"], c["layouts"][0], extremes=c["extremes"])
    t = timesteps(shape[0], seed)
    noise = key = None
    if c["noise_dtype"] is None:
        key = noise_key(seed, range(shape[0]), draw=1, step=seed % 1000)
    else:
        noise = floats(shape, seed + 1, c["noise_dtype"], c["layouts"][1])
    return x, t, noise, key


def run(x, t, noise, key, c):
    name = {"diffusion": "alphas_cumprod", "flow": "sigmas"}[c["path"]]
    out = q_sample(
        x,
        t,
        noise=noise,
        key=key,
        return_noise=c["return_noise"],
        out_dtype=c["out_dtype"],
        **{name: table(c["path"])},
    )
    return out if c["return_noise"] else (out, None)


@given(calls)
def test_agrees_with_the_float64_reference(backend_name, c):
    x, t, noise, key = build(c)
    x_t, n = run(x, t, noise, key, c)
    out_dtype = c["out_dtype"] or c["dtype"]
    noise64 = None if noise is None else noise.double()
    exact, exact_n = reference(x.double(), t, table(c["path"]), noise64, key, c["path"], True, F64)
    assert x_t.dtype == out_dtype
    finite = exact.isfinite() & (exact.abs() < 0.99 * torch.finfo(out_dtype).max)
    size = x.double().nan_to_num(0, 0, 0).abs() + exact_n.abs()
    error = (x_t.double() - exact).abs()
    assert (error <= ulp(exact, out_dtype) + 2e-6 + 2 * ulp(size, F32))[finite].all()
    # What is not finite stays so: an overflow to infinity, a NaN to NaN.
    assert torch.equal(x_t.isnan(), exact.isnan())
    if n is not None:
        assert n.dtype == out_dtype
        assert ((n.double() - exact_n).abs() <= ulp(exact_n, out_dtype) + 1e-6).all()


def test_a_nan_that_rounding_would_carry_over_stays_one(backend_name):
    # Of all ones 0x7fffffff + 0x7fff has the sign bit and nothing else: minus zero in bfloat16.
    x = floats((1, 75), 0)  # two groups of 32 elements and a rest
    x[0, ::5] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    x_t = q_sample(
        x,
        torch.tensor([0]),
        torch.tensor([0.25]),
        noise=torch.zeros_like(x),
        out_dtype=torch.bfloat16,
    )
    assert torch.equal(x_t.isnan(), x.isnan())
    numbers = ~x.isnan()
    assert torch.equal(x_t[numbers], (x * 0.5).bfloat16()[numbers])


@given(calls)
def test_rows_do_not_depend_on_the_batch_or_the_threads(backend_name, c):
    x, t, noise, key = build(c)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        whole, _ = run(x, t, noise, key, c)
        torch.set_num_threads(1)
        for b in range(x.shape[0]):
            row = slice(b, b + 1)
            parts = [None if v is None else v[row] for v in (x, t, noise, key)]
            assert same_bits(run(*parts, c)[0], whole[row])
    finally:
        torch.set_num_threads(threads)


def test_gradients_are_those_of_the_formula(backend_name):
    table = torch.linspace(0.99, 0.01, 10)
    t = torch.tensor([2, 7])
    x = floats((2, 3, 8, 8), 0).requires_grad_()
    noise = floats((2, 3, 8, 8), 1).requires_grad_()
    upstream = floats((2, 3, 8, 8), 2)
    a, s = table[t].sqrt().view(2, 1, 1, 1), (1 - table[t]).sqrt().view(2, 1, 1, 1)
    q_sample(x, t, table, noise=noise).backward(upstream)
    assert torch.equal(x.grad, upstream * a)
    assert torch.equal(noise.grad, upstream * s)
    x.grad = None
    q_sample(x, t, table, key=noise_key(0, [1, 2])).backward(upstream)
    assert torch.equal(x.grad, upstream * a)


def test_an_undefined_upstream_gradient_is_zero(backend_name, way):
    x = floats((2, 3, 8, 8), 0).requires_grad_()
    x_t = q_sample(x, torch.tensor([0, 1]), table("flow"), key=noise_key(0, [1, 2]))
    (Stop.apply(x_t).sum() + x.sum()).backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_output_has_the_memory_format_of_the_input(backend_name):
    x = torch.zeros(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    t = torch.tensor([0, 1])
    x_t, noise = q_sample(x, t, table("flow"), key=noise_key(0, [1, 2]), return_noise=True)
    assert x_t.is_contiguous(memory_format=torch.channels_last)
    assert noise.is_contiguous(memory_format=torch.channels_last)


def test_the_input_is_left_alone(backend_name):
    x = floats((2, 3, 8, 8), 0)
    before = x.clone()
    q_sample(x, torch.tensor([0, 1]), table("diffusion"), key=noise_key(0, [1, 2]))
    assert torch.equal(x, before)


KEY = noise_key(0, [1, 2])
BAD = {
    "no schedule": ({"alphas_cumprod": None}, ValueError, "exactly one of alphas_cumprod"),
    "two schedules": ({"sigmas": torch.ones(3)}, ValueError, "exactly one of alphas_cumprod"),
    "no noise": ({"key": None}, ValueError, "exactly one of noise and key"),
    "both noises": ({"noise": torch.zeros(2, 4)}, ValueError, "exactly one of noise and key"),
    "t too large": ({"t": torch.tensor([0, 3])}, IndexError, "t: got values from 0 to 3"),
    "t negative": ({"t": torch.tensor([-1, 0])}, IndexError, "t: got values from -1"),
    "t of floats": ({"t": torch.tensor([0.0, 1.0])}, TypeError, "t: got dtype float32"),
    "t of the wrong length": ({"t": torch.tensor([0])}, ValueError, r"t: got shape \[1\]"),
    "schedule not a vector": (
        {"alphas_cumprod": torch.ones(3, 1)},
        ValueError,
        "alphas_cumprod: got shape",
    ),
    "key of another batch": (
        {"key": noise_key(0, [1])},
        ValueError,
        r"key: got shape \[1, 3\], expected \[2, 3\]",
    ),
    "x of bytes": ({"x": torch.zeros(2, 4, dtype=torch.uint8)}, TypeError, "x: got dtype uint8"),
    "x a list": ({"x": [1.0]}, TypeError, "x: got list"),
    "integer output": ({"out_dtype": torch.int8}, TypeError, "out_dtype: got torch.int8"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_arguments_are_named(case):
    change, error, message = BAD[case]
    arguments = {
        "x": torch.zeros(2, 4),
        "t": torch.tensor([0, 1]),
        "alphas_cumprod": torch.tensor([0.9, 0.5, 0.1]),
        "key": KEY,
        **change,
    }
    with pytest.raises(error, match=f"q_sample: .*{message}"):
        q_sample(**arguments)
