"""Kernels of a GPU in Triton, the only place that knows it. ``kernels.device`` says what they
compute; offsets into a pool are 64 bits wide, as a pool has more elements than 32 can count."""
