"""The socket side of the engine process: connections, requests and draining. No torch."""
