"""Qualcomm AI Hub: what is uploaded to it, and what it makes of that."""
