"""iclora_train: train, sample and judge In-Context LoRAs for the LTX-2 family of video models."""

__version__ = "0.1.0"
