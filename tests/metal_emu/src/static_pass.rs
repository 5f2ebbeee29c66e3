//! Rejects what is not legal Metal, without running anything.
