//! Memory that a device shares is written by one, or read by many.
use ane_matmul::SharedBuffer;

fn both(buffer: &mut SharedBuffer) {
    let read: &[f32] = buffer.elements();
    let write: &mut [f32] = buffer.elements_mut();
    write[0] = read[0];
}

fn main() {}
