"""Turn raw clips into pair shards, and pair shards into latent shards."""
