"""Shared basics: types, atomic files, devices and ranks, progress bars, W&B."""
