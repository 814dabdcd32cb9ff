"""Score an adapter under other choices of sampling: schedules, sizes, steps, precisions, strengths, an effect LoRA."""
