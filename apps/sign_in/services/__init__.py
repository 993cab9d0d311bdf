"""Writes of the sign-in room."""
