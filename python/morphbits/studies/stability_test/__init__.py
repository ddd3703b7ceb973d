"""Whether two results differ by more than rounding: `morphbits stability-test`."""
