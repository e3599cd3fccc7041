"""The names that other libraries give to the tensors, as data: one module a family."""
