"""Tests of the Triton kernels. Where there is no GPU they are interpreted; or compiled and not run."""

from __future__ import annotations

import importlib.util
import os

import torch

# Without a GPU the kernels run in a process of their own, see test_interpreted.py: Triton decides when
# a kernel is defined whether it is compiled or interpreted.
collect_ignore = []
if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    collect_ignore += ["test_agreement.py", "test_attention_kernels.py"]
if importlib.util.find_spec("triton") is None:
    collect_ignore += [
        *("test_traced.py", "test_agreement.py"),
        *("test_attention_kernels.py", "test_attention_tiles.py"),
    ]
