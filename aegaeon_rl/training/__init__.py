"""Learning a scheduler: MaskablePPO over batched pools, from an index, with exact resume."""
