"""Evaluate an adapter on held-out pairs: metrics with intervals, verdicts, a report. May import iclora_train only."""
