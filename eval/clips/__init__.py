"""The clips to evaluate: held-out windows, conditions, the adapter, sampled clips, clips of other programs."""
