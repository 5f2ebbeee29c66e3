//! Whoever loads foreign code says so.
use ane_matmul::ShimLibrary;

fn main() {
    ShimLibrary::open("libshim.so").unwrap();
}
