"""Which clips are judged: conditions, held-out windows, the adapter, clips of other programs."""
