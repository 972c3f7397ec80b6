"""Virtual time over the scheduler core, with predicted step times."""
