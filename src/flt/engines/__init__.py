"""Engines. An engine trains the jobs of a round: one by one, several at once on one device, or in several processes.

Read serial.py first: it contains the simplest engine. Then read distributed.py and process_group.py. The docstring of
batched/__init__.py says in which order to read the files there.
"""
