"""The orders in which sums are added: by name, as trees, and measured from the framework."""
