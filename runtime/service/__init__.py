"""The pooled runtime as a service: HTTP, controller, policy and workers, each its own process."""
