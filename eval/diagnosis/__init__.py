"""Diagnose one finished clip against its reference, without a target and without a base model."""
