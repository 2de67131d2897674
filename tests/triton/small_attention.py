"""A pytest plugin: attention's contract on shapes that an interpreter gets through.

Head dims, numbers of keys and names stay; fewer batches, heads and queries. What needs many of them,
threads and batches, is tested in test_attention_kernels.py.
"""

from __future__ import annotations

import pytest

#: B, H, N, M, D. Interpreted float32 tiles are 32 by 32: 40 queries are a whole one and what remains.
SMALL = {
    "one key": (1, 2, 9, 1, 8),
    "one query": (2, 1, 1, 129, 40),
    "text, 40": (1, 2, 9, 77, 40),
    "text, 160": (1, 1, 9, 77, 160),
    "80 keys": (1, 1, 9, 80, 80),
    "127 keys": (1, 1, 9, 127, 64),
    "128 keys": (1, 1, 9, 128, 128),
    "129 keys": (1, 1, 40, 129, 64),
    "300 keys, 40": (1, 1, 9, 300, 40),
    "700 keys, 24": (1, 1, 9, 290, 24),
    "VAE, 512": (1, 1, 5, 9, 512),
    "odd head": (1, 1, 9, 41, 17),
    "few heads, many queries": (1, 1, 70, 20, 40),
}
REAL = {"text, 40": (1, 1, 96, 77, 40), "self, 64": (1, 1, 96, 96, 64)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for module in {item.getparent(pytest.Module).obj for item in items}:
        assert SMALL.keys() <= module.SHAPES.keys()
        assert REAL.keys() == module.REAL.keys()
        module.SHAPES.update(SMALL)
        module.REAL.update(REAL)
