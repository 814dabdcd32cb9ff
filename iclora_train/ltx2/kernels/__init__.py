"""Fused operators: attention backends, LoRA matmuls, norms, fp8. Each equals a few lines of plain PyTorch."""
