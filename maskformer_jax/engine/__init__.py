"""The loops: everything with side effects meets here."""
