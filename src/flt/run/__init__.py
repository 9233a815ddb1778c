"""The way from a configuration to a finished run. Read run.py first, then assembly.py and build.py."""
