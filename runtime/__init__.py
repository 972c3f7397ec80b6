"""A pool of GPUs that serves many models, emulated or live. Knows no RL."""
