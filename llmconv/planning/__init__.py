"""What a conversion will need and what its target holds, known before a weight is read."""
