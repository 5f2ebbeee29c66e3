//! NumPy files (feature `npy`).
