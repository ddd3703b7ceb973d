"""morphbits: how many bits of a brain registration are significant?

Importing this package never imports TensorFlow, and imports torch only when an engine or a
model is used.
"""

__version__ = "0.1.0"
