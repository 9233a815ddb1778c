"""The round loop and the aggregation. Read federator first, then aggregation."""
