"""Fused operators: attention backends, LoRA products, norms, fp8. Each equals a few lines of plain PyTorch."""
