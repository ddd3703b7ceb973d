"""The published study as one plan, and its comparison with the published numbers."""
