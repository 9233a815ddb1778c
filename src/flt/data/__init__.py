"""Examples, their encoding, and the clients that hold them. Read examples first, then partition."""
