"""Latency profiles, JSON with provenance."""
