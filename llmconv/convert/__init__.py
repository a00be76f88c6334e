"""The whole way from a recipe to a bundle."""
