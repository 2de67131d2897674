"""Benchmarks: the ops (`python -m benchmarks`) and the protection (`python -m benchmarks.protection`)."""
