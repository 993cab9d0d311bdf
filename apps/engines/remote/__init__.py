"""Replicas that are someone else's: a server that speaks OpenAI's API over HTTP, asked as an engine
is. Nothing of a caller but its request goes there; nothing comes back but answers and counts."""
