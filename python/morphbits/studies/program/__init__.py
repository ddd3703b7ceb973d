"""Any PyTorch program, repeated under random rounding, and how far its output files agree."""
