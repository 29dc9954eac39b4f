"""A run: passes over data, what callbacks are told, and how a run is saved and resumed."""
