"""The settings of a run: typed dataclasses, their bounds, and Hydra's command line."""
