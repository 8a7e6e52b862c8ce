"""Everything that turns weights into files and back."""
