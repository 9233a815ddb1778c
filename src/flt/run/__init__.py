"""From a configuration to a running federation. Read run first, then assembly."""
