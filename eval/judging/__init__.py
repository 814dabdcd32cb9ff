"""From figures to verdicts: claims, thresholds, control gain, symptoms."""
