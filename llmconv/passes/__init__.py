"""What passes are, and what runs them."""
