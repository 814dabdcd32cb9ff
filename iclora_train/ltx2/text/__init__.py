"""Text encoders and the connectors that turn their states into cross-attention tokens."""
