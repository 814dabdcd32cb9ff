"""`python -m iclora_train.signal`: the references of a new clip by the makers of training, and masks for regions."""
