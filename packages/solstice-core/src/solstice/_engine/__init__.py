"""The step engine: batches become blocks, and one compiled call runs the steps of a block."""
