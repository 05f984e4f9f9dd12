"""A cache of events as a TFDS dataset: packed records that are read in any order."""
