"""Latency profiles: derived from public tables, later measured."""
