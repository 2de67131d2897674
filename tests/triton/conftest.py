"""Tests of the Triton kernels where there is no GPU: interpreted, and compiled but not run."""

from __future__ import annotations

import importlib.util
import os

# The tests in `interpreted` run in a process of their own, see test_interpreted.py: Triton decides
# when a kernel is defined whether it is compiled or interpreted.
collect_ignore = []
if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore.append("interpreted")
if importlib.util.find_spec("triton") is None:
    collect_ignore += ["test_traced.py", "interpreted"]
