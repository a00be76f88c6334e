"""What a user writes: the recipe, its overrides, its targets."""
