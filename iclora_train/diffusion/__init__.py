"""Rectified flow with in-context references: training inputs, loss, noise schedules, guidance, sampler."""
