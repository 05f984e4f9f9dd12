"""ROOT files: reading at speed, in an order that the step number decides; writing whole files."""
