"""Synthetic probes: references with an exactly known answer, put to the adapter before any held-out clip."""
