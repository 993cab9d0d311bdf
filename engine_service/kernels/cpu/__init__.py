"""The compiled step of the CPU: C++ sources, their build, and what Python sees of the library."""
