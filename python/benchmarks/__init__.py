"""Programs that measure: each is run by a make target and writes a table into notes/."""
