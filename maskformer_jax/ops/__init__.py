"""Pure functions on arrays: no weights, no files, no state."""
