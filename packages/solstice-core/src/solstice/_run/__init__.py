"""A run: its passes over data, the calls of its callbacks, and how it is saved and resumed."""
