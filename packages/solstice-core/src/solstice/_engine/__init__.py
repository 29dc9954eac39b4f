"""The step engine: it stacks batches into blocks, and runs a block in one compiled call."""
