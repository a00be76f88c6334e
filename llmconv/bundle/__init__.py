"""What a conversion leaves: the output folder, and how hosts run it."""
