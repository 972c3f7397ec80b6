"""Schedulers: each one file and one line in the registry."""
