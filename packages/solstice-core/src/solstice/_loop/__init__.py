"""The loop: training, evaluation and prediction, their hooks, and how a run is resumed."""
