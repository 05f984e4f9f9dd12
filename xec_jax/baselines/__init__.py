"""Classical methods that the networks are compared with."""
