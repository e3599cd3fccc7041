"""Data sets and tasks: files to records to arrays to answers; nothing here imports torch."""
