//! A model of how the threads of the CPU engine's pool meet; all of it is in `tests`.
