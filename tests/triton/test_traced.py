"""torch.compile sees the kernels: traced on fake CUDA tensors, without a GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch._dynamo.source import ConstantSource
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
from torch._subclasses import FakeTensorMode
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import udp_fast.backends.triton as package
import udp_fast.ops  # noqa: F401 - defines the ops
from udp_fast.backends import dispatch, registry

OPS = torch.ops.udp_fast
BF16, F32 = torch.bfloat16, torch.float32

#: What each kernel writes, where a call has it: all but `pgd_step_multi`, which torch.compile calls as it is.
WRITES = {
    "attention_dkdv": {"dk", "dv"},
    "attention_dq": {"dq"},
    "attention_few_keys_dq": {"dq"},
    "attention_forward": {"out", "lse"},
    "attention_rows": {"minus_delta", "lse2"},
    "attention_wide_forward": {"out", "lse"},
    "attention_wide_gradient": {"grad"},
    "ball_scale": {"scales"},
    "channel_moments": {"partials"},
    "count": {"skipped"},
    "denoising_loss": {"grad", "partials"},
    "geglu": {"y"},
    "geglu_backward": {"dx"},
    "gradient_square": {"partials"},
    "gradient_sums": {"partials"},
    "gradient_terms": {"terms", "dweight", "dbias"},
    "group_moments": {"mean", "rstd"},
    "image_scale": {"out"},
    "input_gradient": {"dx"},
    "mean": {"loss"},
    "normalise": {"y"},
    "pgd_step": {"delta", "adv", "partials"},
    "q_sample": {"out", "noise_out"},
    "quantize": {"out"},
    "step_size": {"sizes"},
    "stepped_square": {"partials"},
}


class Driver:
    """What torch asks of Triton's driver to find out which arguments a kernel writes."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but a GPU; no other backend wants its tensors first."""
    if package.INTERPRETS:
        pytest.skip("kernels are interpreted, not compiled")
    found = {name: registry.backend(name) for name in ("triton", "cpu", "reference")}
    found["triton"] = dataclasses.replace(found["triton"], missing="")
    monkeypatch.setattr(dispatch, "order", lambda op: tuple(found))
    monkeypatch.setattr(dispatch, "backend", found.__getitem__)
    monkeypatch.setattr(package, "_too_old", lambda device: "")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(driver, "_active", Driver())


def launched(traced: torch.fx.GraphModule) -> list[str]:
    """The kernels of a graph that is nothing but kernels and torch's own operators, in order.

    Each is taken to write what it writes: of anything else torch.compile would make a copy, or believe
    an input to be changed. It does so for every operand where it fails to read a kernel.
    """
    kernels = []
    for node in traced.graph.nodes:
        assert "udp_fast" not in str(node.target)
        if "triton_kernel_wrapper_functional" in str(node.target):
            kernel = kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
            name = kernel.fn.__name__.removesuffix("_kernel")
            operands = {k for k, v in node.kwargs["kwargs"].items() if v is not None}
            assert set(node.kwargs["tensors_to_clone"]) == WRITES[name] & operands, name
            kernels.append(name)
    return kernels


def protection_step(x, t, table, key, delta, grad, original, budget):
    x_t, _ = OPS.q_sample(x, t, table, None, key, "diffusion", False, BF16)
    given = (None, None, None, None, None, key, None)
    loss, dpred = OPS.denoising_loss(x_t, *given, "epsilon", True, 1.0)
    bounds = (0.0, 1.0, -1.0, 1.0)
    step = (grad, original, budget, budget, None, "sign", "linf", True, *bounds, BF16)
    adv, skipped = OPS.pgd_step_(delta, *step)
    new_delta, _, _ = OPS.pgd_step(delta, *step)
    written = OPS.quantize(new_delta, original, budget, None, "delta", 0.0, 1.0)
    return loss, OPS.image_scale(dpred, budget), adv, skipped, written


def arguments(device: str, images: int | torch.SymInt, side: int | torch.SymInt):
    image = (images, 3, side, side)
    shapes = {
        "x": (image, BF16),
        "t": ((images,), torch.int64),
        "table": ((1000,), F32),
        "key": ((images, 3), torch.int64),
        "delta": (image, torch.float16),
        "grad": (image, BF16),
        "original": (image, torch.uint8),
        "budget": ((images,), F32),
    }
    return [torch.empty(s, dtype=dtype, device=device) for s, dtype in shapes.values()]


def symbols(shapes: ShapeEnv, *sizes: int) -> list[torch.SymInt]:
    found = (shapes.create_symbol(n, ConstantSource(f"n{n}")) for n in sizes)
    return [shapes.create_symintnode(s, hint=n) for s, n in zip(found, sizes, strict=True)]


def graph(device: str, dynamic: bool = False) -> torch.fx.GraphModule:
    """What a protection step on fake tensors becomes."""
    shapes = ShapeEnv()
    sizes = symbols(shapes, 2, 64) if dynamic else [2, 64]
    with FakeTensorMode(shape_env=shapes):
        traced = make_fx(dispatch_functionalize(protection_step))(*arguments(device, *sizes))
    assert not shapes.guards  # one graph serves all sizes
    return traced


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_kernels_are_in_the_graph(gpu, dynamic):
    step = ["pgd_step", "count"]
    expected = ["q_sample", "denoising_loss", "mean", *step, *step, "quantize", "image_scale"]
    assert launched(graph("cuda", dynamic)) == expected


def test_the_kernels_of_norms_of_steps_are_in_the_graph(gpu):
    def step(delta, budget):
        bounds = (0.0, 1.0, 0.0, 1.0)
        return OPS.pgd_step_(
            delta, delta, delta, budget, budget, None, "l2", "l2", True, *bounds, F32
        )

    with FakeTensorMode():
        delta, budget = torch.empty((2, 3, 8, 8), device="cuda"), torch.empty(2, device="cuda")
        traced = make_fx(dispatch_functionalize(step))(delta, budget)
    norms = ["gradient_square", "step_size", "stepped_square", "ball_scale"]
    assert launched(traced) == [*norms, "pgd_step", "count"]


def test_what_kernels_write_is_known_of_all():
    from udp_fast.backends.triton import variants

    kernels = {name.removesuffix("_kernel") for name in variants._kernels()}
    assert kernels == {*WRITES, "pgd_step_multi"}


def test_the_kernels_of_a_norm_are_in_the_graph(gpu):
    def norm(x, grad, weight):
        y, mean, rstd = OPS.group_norm_silu(x, weight, weight, 4, 1e-5, "silu")
        rest = (weight, weight, 4, "silu", [True, True, False])
        return y, *OPS.group_norm_silu_backward(grad, x, mean, rstd, *rest)

    with FakeTensorMode(shape_env=ShapeEnv()):
        x = torch.empty((2, 16, 8, 8), dtype=BF16, device="cuda")
        weight = torch.empty((16,), device="cuda")
        traced = make_fx(dispatch_functionalize(norm))(x, torch.empty_like(x), weight)
    forward = ["channel_moments", "group_moments", "normalise"]
    assert launched(traced) == [*forward, "gradient_sums", "gradient_terms", "input_gradient"]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_the_kernels_of_a_gated_unit_are_in_the_graph(gpu, dynamic):
    def both(x, grad):
        return OPS.geglu(x), OPS.geglu_backward(grad, x)

    shapes = ShapeEnv()
    with FakeTensorMode(shape_env=shapes):
        rows = symbols(shapes, 24)[0] if dynamic else 24
        x, grad = (torch.empty((rows, n), dtype=BF16, device="cuda") for n in (64, 32))
        traced = make_fx(dispatch_functionalize(both))(x, grad)
    assert launched(traced) == ["geglu", "geglu_backward"]


FEW = ["attention_forward", "attention_few_keys_dq"]
MANY = ["attention_forward", "attention_rows", "attention_dq", "attention_dkdv"]
WIDE = ["attention_wide_forward", "attention_rows", *["attention_wide_gradient"] * 3]


@pytest.mark.parametrize(
    ("dim", "keys", "needs", "expected", "dtype", "bias"),
    [
        (40, 77, (True, False, False), FEW, BF16, None),
        (64, 1024, (True, True, True), MANY, BF16, None),
        (160, 1024, (True, True, True), [*MANY, "attention_dkdv"], BF16, None),
        (512, 1024, (True, True, True), WIDE, BF16, None),
        (64, 300, (True, False, True), MANY, F32, None),
        (40, 77, (True, False, False), FEW, BF16, (2, 1, 1, 77)),
        (80, 300, (True, True, True), MANY, BF16, (1, 4, 256, 300)),
    ],
    ids=[
        *("dq alone", "all gradients", "dk and dv apart", "wide", "float32"),
        *("padded keys", "a bias for each score"),
    ],
)
def test_attention_is_in_the_graph(gpu, monkeypatch, dim, keys, needs, expected, dtype, bias):
    monkeypatch.setenv("UDP_FAST_BACKEND", "triton")

    def forward(q, k, v, bias, grad):
        return OPS.attention(q, k, v, bias, 0.125, True)

    def backward(q, k, v, bias, grad, out, lse):
        return OPS.attention_backward(grad, q, k, v, bias, out, lse, 0.125, needs)

    with FakeTensorMode():
        q, k, v = (
            torch.empty((2, n, 4, dim), dtype=dtype, device="cuda").transpose(1, 2)
            for n in (256, keys, keys)
        )
        if bias is not None:
            bias = torch.empty(bias, dtype=dtype, device="cuda")
        lse = torch.empty((2, 4, 256), device="cuda")
        kernels = []
        for function, rest in ((forward, ()), (backward, (q, lse))):
            traced = make_fx(dispatch_functionalize(function))(q, k, v, bias, q, *rest)
            kernels += launched(traced)
    assert kernels == expected


@pytest.mark.parametrize("dtype", [F32, BF16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [1, 17, 40, 64, 80, 128, 160, 512])
def test_attention_is_refused_nothing(gpu, dim, dtype):
    """Of what the contract names; float64 is the reference's alone."""
    backend = registry.backend("triton")
    needs = ([True, False, False], [False, True, True], [True, True, True])
    with FakeTensorMode():
        for n, m in ((4096, 77), (33, 129), (1, 1)):
            for swapped in (False, True):
                q, k = (
                    torch.empty(
                        (2, rows, 3, dim) if swapped else (2, 3, rows, dim),
                        dtype=dtype,
                        device="cuda",
                    )
                    for rows in (n, m)
                )
                if swapped:
                    q, k = q.transpose(1, 2), k.transpose(1, 2)
                lse = torch.empty((2, 3, n), device="cuda")
                for shape in ((2, 1, 1, m), (2, 3, n, m), (1, 1, n, 1)):
                    for bias in (None, torch.empty(shape, dtype=dtype, device="cuda")):
                        forward = (q, k, k, bias, 0.1, True)
                        assert backend.not_supported_reasons("attention", forward) == []
                        for some in needs:
                            rest = (q, q, k, k, bias, q, lse, 0.1, some)
                            assert backend.not_supported_reasons("attention_backward", rest) == []
        q = torch.empty((2, 3, 4, dim), dtype=torch.float64, device="cuda")
        assert backend.not_supported_reasons("attention", (q, q, q, None, 0.1, True)) != []


@pytest.mark.parametrize(
    ("device", "pinned"), [("cpu", "auto"), ("cuda", "reference"), ("cuda", "cpu")]
)
def test_a_call_that_triton_does_not_take_stays_an_op(gpu, monkeypatch, device, pinned):
    monkeypatch.setenv("UDP_FAST_BACKEND", pinned)
    called = [str(n.target) for n in graph(device).graph.nodes if n.op == "call_function"]
    assert any("udp_fast" in name or name == "auto_functionalized_v2" for name in called)
    assert "triton_kernel_wrapper_functional" not in called


@pytest.mark.parametrize(
    "name",
    [
        "pgd_step-dense-mapped",
        "pgd_step-dense-l2-f32",
        "quantize-dense-image-f32",
        "denoising_loss-dense-flow-bf16",
        "q_sample-dense-flow-bf16",
        "normalise-planes-bf16",
        "normalise-channels-f32",
        "input_gradient-planes-f32",
        "gradient_sums-planes-bf16",
        "gradient_sums-channels-bf16",
        "channel_moments-planes-bf16",
        "geglu-tokens-bf16",
        "geglu_backward-tokens-f32",
    ],
)
def test_contraction_finds_nothing_to_contract(name, monkeypatch):
    """torch.compile builds the kernels with it: their results must be those of eager mode.

    Left out: v_prediction, which adds a product to zero, and the random quantize, which adds an exact
    product; either way the bits are the same.
    """
    if package.INTERPRETS:
        pytest.skip("kernels are interpreted, not compiled")
    from udp_fast.backends.triton import variants

    compiler = variants.triton.compile

    def fused(fusion: bool) -> int:
        def built(source, target, options):
            return compiler(source, target=target, options={**options, "enable_fp_fusion": fusion})

        monkeypatch.setattr(variants.triton, "compile", built)
        return variants.compile_variant(variant, 90).asm["ptx"].count("fma.rn.f32")

    (variant,) = (v for v in variants.variants() if v.name == name)
    assert fused(True) == fused(False)
