"""What a dataset contains, and what in it looks like a mistake."""
