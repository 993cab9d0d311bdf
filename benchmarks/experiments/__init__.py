"""Simulated experiments: how often apps.statistics is wrong, and how soon it is right."""
