"""One contract per operator: its domain, how to run a side, how far it may be from the truth."""
