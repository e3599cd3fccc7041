"""Parameters: trees, their description, and files that hold them."""
