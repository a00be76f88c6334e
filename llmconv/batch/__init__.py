"""Many conversions: a matrix of recipes, checkpoints, targets and contexts, each converted in a process of its own."""
