"""A pytest plugin: property-based tests try ten examples."""

from __future__ import annotations

import pytest
from hypothesis import settings


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        test = getattr(item, "obj", None)
        if hasattr(test, "hypothesis"):
            inner = getattr(test, "_hypothesis_internal_use_settings", None) or settings.default
            test._hypothesis_internal_use_settings = settings(inner, max_examples=10)
