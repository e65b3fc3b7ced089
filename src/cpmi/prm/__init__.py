"""Process reward models: reading, training, and using them as a source of step rewards."""
