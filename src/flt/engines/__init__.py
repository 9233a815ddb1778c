"""Training of a round's jobs: one by one, several at once, or in several processes.

Read serial.py first: it contains the simplest engine. Then read distributed.py and process_group.py. The docstring of
batched/__init__.py says in which order to read the files there.
"""
