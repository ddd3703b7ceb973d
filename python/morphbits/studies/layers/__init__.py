"""Where the bits of a registration go: by stage, by precision, by order of sums."""
