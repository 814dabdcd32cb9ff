"""Means with confidence intervals and paired significance tests."""
