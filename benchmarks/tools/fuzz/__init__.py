"""Random input of every kind for flt, which has to refuse it with an InputError of one line, or accept it.

    python -m benchmarks.tools.fuzz --minutes 30 --seed 0
    python -m benchmarks.tools.fuzz --only overrides,data --examples 200
    python -m benchmarks.tools.fuzz --only messages --seed 0 --first 1234 --examples 1      one example again

An example depends only on the name of its kind, the seed and its number.
"""
