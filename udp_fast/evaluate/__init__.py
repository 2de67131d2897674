"""Measuring what a protection achieved."""
