"""One contract per operator: its domain, how a side is run, how far it may be from the truth."""
