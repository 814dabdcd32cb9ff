"""Synthetic probes: references with an exactly known answer, given to the adapter before any held-out clip."""
