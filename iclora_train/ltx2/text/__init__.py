"""Text encoders: Gemma with its connectors for the real models, a small encoder for nano."""
