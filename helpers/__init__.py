"""The code of the book: one concept a module, each first written in full in a chapter."""
