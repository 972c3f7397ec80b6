"""Train, tune, compare and deploy token-level schedulers."""
