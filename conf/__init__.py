"""Hydra YAML, read as pkg://conf. No code."""
