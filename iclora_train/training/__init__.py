"""The LightningModule and what runs around it: validation, logging, checkpoints, memory planning, export."""
