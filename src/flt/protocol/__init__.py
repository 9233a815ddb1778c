"""The messages between server and client, what both sides keep, and the role of each tensor. Read messages first."""
