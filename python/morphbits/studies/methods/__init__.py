"""Registration methods compared: the same images, the same perturbation, other methods."""
