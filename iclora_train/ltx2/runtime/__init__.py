"""How the transformer is run: compilation, CUDA graphs, activation and weight offload, fused blocks."""
