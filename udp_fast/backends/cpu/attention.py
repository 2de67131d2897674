"""attention on csrc/cpu: products in registers, the scores never in memory as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..outputs import gradients
from .native import DTYPES, fresh, fresh_like, is_large, module

#: Dtype, and strides of image, head and row in elements.
Heads = tuple[int, int, int, int]
#: Strides of image, head, query and key, 0 where it is broadcast.
Bias = tuple[int, int, int, int]


def _heads(x: Tensor | None) -> Heads | None:
    if x is None or x.numel() == 0:
        return None
    image, head, row, _ = x.stride()
    return DTYPES[x.dtype], image, head, row


def _address(x: Tensor | None) -> int:
    """0 also of what has size 0, for nobody wants it."""
    return 0 if x is None else x.data_ptr()


def _has_rows(x: Tensor) -> bool:
    """Whether the numbers of one head lie side by side."""
    return x.stride(3) == 1 or x.shape[3] == 1


def _rows(x: Tensor) -> Tensor:
    return x if _has_rows(x) else x.contiguous()


def _bias(bias: Tensor | None, keys: int) -> tuple[Bias | None, Tensor | None]:
    """The bias as the kernels take it, and the tensor of float32 that has these strides."""
    if bias is None:
        return None, None
    bias = bias.to(torch.float32)
    if bias.shape[2] > 1:  # one row a query: read along the keys
        bias = bias.expand(*bias.shape[:3], keys)
        bias = bias if bias.stride(3) == 1 else bias.contiguous()
    strides = [0 if n == 1 else s for n, s in zip(bias.shape, bias.stride(), strict=True)]
    if bias.shape[2] > 1:
        strides[3] = 1
    return (strides[0], strides[1], strides[2], strides[3]), bias


def _shape(q: Tensor, k: Tensor) -> tuple[int, int, int, int, int]:
    images, heads, queries, size = q.shape
    return images, heads, queries, k.shape[2], size


Kernel = Callable[..., None]


@lru_cache(maxsize=2048)
def _prepared(name: str, *known: Any) -> Kernel:
    kernel: Kernel = getattr(module(), name)(*known)
    return kernel


def _kernel(
    q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, scale: float, out: Tensor
) -> Kernel:
    """For such tensors: takes the addresses of q, k, v, bias, out and lse, and a number of threads."""
    of_qkv = map(_heads, (q, k, v))
    return _prepared("attention_kernel", _shape(q, k), *of_qkv, bias, scale, _heads(out))


def _backward_kernel(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Bias | None,
    out: Tensor | None,
    scale: float,
    grads: Sequence[Tensor],
) -> Kernel:
    """The same of grad_out, q, k, v, bias, out, lse, dq, dk and dv."""
    given = map(_heads, (grad_out, q, k, v))
    known = _shape(q, k), *given, bias, _heads(out), scale, *map(_heads, grads)
    return _prepared("attention_backward_kernel", *known)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    need_lse: bool,
) -> tuple[Tensor, Tensor]:
    out = fresh_like(q)
    rows = q.shape[:3] if need_lse else (0,)
    lse = q.new_empty(*rows, dtype=torch.float32)  # a sequence takes twice as long
    if q.numel() == 0 or k.numel() == 0:
        return out.zero_(), lse.fill_(-math.inf)
    strides, bias = _bias(bias, k.shape[2])
    q, k, v = _rows(q), _rows(k), _rows(v)
    kernel = _kernel(q, k, v, strides, scale, out)
    kernel(*map(_address, (q, k, v, bias, out, lse)), torch.get_num_threads())
    return out, lse


def attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor | None,
    lse: Tensor | None,
    scale: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    grads = dq, dk, dv = gradients(needs, (q, k, v))
    for grad in grads:
        fresh(grad)
    if q.numel() == 0 or k.numel() == 0:
        return dq.zero_(), dk.zero_(), dv.zero_()
    strides, bias = _bias(bias, k.shape[2])
    grad_out, q, k, v = _rows(grad_out), _rows(q), _rows(k), _rows(v)
    out = None if out is None else _rows(out)
    lse = None if lse is None else lse.contiguous()
    kernel = _backward_kernel(grad_out, q, k, v, strides, out, scale, grads)
    tensors = (grad_out, q, k, v, bias, out, lse, *grads)
    kernel(*map(_address, tensors), torch.get_num_threads())
    return grads


# Both once more for tensors that are all like one call's, without looking at them again. Names of a
# function's own are found at once; torch's are found in dictionaries that nothing else uses, and each takes
# about a microsecond once a kernel has gone through the caches.


def _is_simple(bias: Tensor | None, keys: int, *tensors: Tensor | None) -> bool:
    """Whether a call needs no copies, and there is something to do."""
    if bias is not None:
        a_row_each = bias.shape[2] > 1  # read along the keys
        if bias.dtype != torch.float32 or (
            a_row_each and (bias.shape[3] != keys or bias.stride(3) != 1)
        ):
            return False
    return all(x is None or (x.numel() > 0 and _has_rows(x)) for x in tensors)


def _maker(*like: Tensor) -> Callable[[Tensor], Tensor]:
    """What makes results like these: without a look at their sizes if all are small."""
    return fresh_like if any(map(is_large, like)) else torch.empty_like


def prepare_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    need_lse: bool,
) -> Callable[..., tuple[Tensor, Tensor | None]] | None:
    """``attention(q, k, v, bias, scale, need_lse)`` of (q, k, v) and a bias, if there is one, if it is
    simple; without need_lse there is None in place of lse."""
    if not _is_simple(bias, k.shape[2], q, k, v):
        return None
    strides, _ = _bias(bias, k.shape[2])
    kernel = _kernel(q, k, v, strides, scale, torch.empty_like(q))
    empty_like, threads = _maker(q), torch.get_num_threads
    # Like one that has this shape and no memory: half as long as naming shape and dtype.
    like_lse = q.new_empty(1, dtype=torch.float32).expand(q.shape[:3])

    def run(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        out = empty_like(q)
        lse = empty_like(like_lse) if need_lse else None
        kernel(
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            out.data_ptr(),
            0 if lse is None else lse.data_ptr(),
            threads(),
        )
        return out, lse

    return run


def prepare_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor | None,
    lse: Tensor | None,
    scale: float,
    needs: Sequence[bool],
) -> Callable[..., tuple[Tensor | None, Tensor | None, Tensor | None]] | None:
    """``attention_backward`` with these arguments, of (grad_out, q, k, v), out and lse if they are there,
    and a bias if there is one, if it is simple; there is None in place of what is not needed."""
    if not _is_simple(bias, k.shape[2], grad_out, q, k, v, out):
        return None
    if lse is not None and not lse.is_contiguous():
        return None
    strides, _ = _bias(bias, k.shape[2])
    needs_q, needs_k, needs_v = needs
    grads = gradients(needs, (q, k, v))
    kernel = _backward_kernel(grad_out, q, k, v, strides, out, scale, grads)
    empty_like, threads = _maker(q, k, v), torch.get_num_threads
    has_statistics, has_bias = out is not None, bias is not None

    def run(
        grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        dq = empty_like(q) if needs_q else None
        dk = empty_like(k) if needs_k else None
        dv = empty_like(v) if needs_v else None
        kernel(
            grad_out.data_ptr(),
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            rest[-1].data_ptr() if has_bias else 0,
            rest[0].data_ptr() if has_statistics else 0,
            rest[1].data_ptr() if has_statistics else 0,
            0 if dq is None else dq.data_ptr(),
            0 if dk is None else dk.data_ptr(),
            0 if dv is None else dv.data_ptr(),
            threads(),
        )
        return dq, dk, dv

    return run
