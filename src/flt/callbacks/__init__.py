"""Callbacks: of the server, of the federation, of local training."""
