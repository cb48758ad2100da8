"""What expressions may do to values: the bounds of all work, and the tables of filters and tests by theme."""
