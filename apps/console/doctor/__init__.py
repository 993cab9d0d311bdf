"""Looks at everything that the platform stands on, and says what to do about what is wrong."""
