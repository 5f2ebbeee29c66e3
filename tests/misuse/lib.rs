//! Cargo wants a library beside the test: this one is empty.
