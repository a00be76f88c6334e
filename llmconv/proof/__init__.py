"""What shows that a bundle computes what its checkpoint computes."""
