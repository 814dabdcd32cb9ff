"""What every room uses and what has no subject of its own: types, atomic files, progress bars, W&B."""
