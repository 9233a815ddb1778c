"""Engines, which train the jobs of a round: one by one, stacked on one device, or spread over several processes.

Read serial.py first (the simplest engine), then distributed.py and process_group.py; batched/ has its own guide.
"""
