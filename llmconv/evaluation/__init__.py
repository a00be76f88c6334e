"""What shows how far one model is from another."""
