"""Backends: one folder each, one file an op. `dispatch` picks one for every call."""
