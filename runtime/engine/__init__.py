"""The real engine: many models on one device, switched between tokens."""
