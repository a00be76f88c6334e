"""Talking with a bundle: the chat template, the history and its room, and answers as they come."""
