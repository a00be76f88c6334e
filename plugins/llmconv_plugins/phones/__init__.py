"""Phones: a bundle and Genie's libraries pushed to one through adb, and its speed there."""
