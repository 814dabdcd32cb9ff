"""From values to verdicts: claims, thresholds, control gain, symptoms."""
