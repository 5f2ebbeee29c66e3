//! Cargo wants a library beside the benches: this one is empty.
