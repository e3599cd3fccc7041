"""Tables of the tensor names in other libraries: one module a family."""
