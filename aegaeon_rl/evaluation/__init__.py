"""Honest comparison: paired runs, metrics, intervals, a verdict, a report."""
