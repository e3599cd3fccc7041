"""Files: where they are, and the formats that tensors are kept in."""
