"""The speed benchmark, ``make bench``: flt's engines, a hand-written loop and two other frameworks, side by side."""
