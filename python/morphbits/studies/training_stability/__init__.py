"""Is training stable? The same training repeated with one thing varied."""
