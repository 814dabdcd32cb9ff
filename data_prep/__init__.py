"""Raw clips become pair shards, pair shards become latent shards."""
