"""The scheduler core: pure transitions over the tables of one pool. It never reads a clock."""
