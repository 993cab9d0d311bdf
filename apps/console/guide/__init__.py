"""The guided page, on which a file becomes a version that has traffic. It keeps nothing of its own:
what it shows is read from the rows that its steps make, and its forms are those of their pages."""
