"""The configs, installed as `flt.conf`: the top-level conf/ folder of the repository."""
