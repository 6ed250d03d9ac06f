"""The code of the book, one concept a module."""
