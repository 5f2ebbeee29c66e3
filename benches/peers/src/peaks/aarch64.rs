//! Loops of AArch64's multiply-add instructions.

use std::arch::aarch64::{float32x4_t, vaddq_f32, vdupq_n_f32, vfmaq_f32};
use std::arch::{asm, is_aarch64_feature_detected};
use std::hint::black_box;

use super::Loop;

/// Enough independent sums to cover four instructions a cycle with a latency of four.
const SUMS: usize = 20;

pub(super) fn detected() -> Vec<&'static str> {
    let mut names = Vec::new();
    macro_rules! detect {
        ($($feature:tt)*) => { $(if is_aarch64_feature_detected!($feature) { names.push($feature); })* };
    }
    detect!("neon" "dotprod" "i8mm" "bf16");
    names
}

pub(super) fn loops() -> Vec<Loop> {
    let mut loops = vec![arithmetic("f32", "neon fmla", 4 * 2, fma)];
    if is_aarch64_feature_detected!("bf16") {
        loops.push(arithmetic("bf16", "bfdot", 8 * 2, dot_bf16));
    }
    if is_aarch64_feature_detected!("dotprod") {
        loops.push(arithmetic("int8", "sdot", 16 * 2, dot_int8));
    }
    loops
}

fn arithmetic(
    precision: &'static str,
    instruction: &'static str,
    operations: usize,
    run: unsafe fn(usize),
) -> Loop {
    Loop { precision, instruction, operations: (operations * SUMS) as f64, run }
}

#[target_feature(enable = "neon")]
fn fma(repetitions: usize) {
    let (x, y) = (black_box(vdupq_n_f32(0.5)), black_box(vdupq_n_f32(0.25)));
    let mut sums = black_box([vdupq_n_f32(0.0); SUMS]);
    for _ in 0..repetitions {
        for sum in &mut sums {
            *sum = vfmaq_f32(*sum, x, y);
        }
    }
    black_box(sums.into_iter().reduce(|a, b| vaddq_f32(a, b)));
}

// The intrinsics of both instructions are not stable.
macro_rules! dot {
    ($name:ident, $feature:literal, $instruction:literal) => {
        #[target_feature(enable = $feature)]
        fn $name(repetitions: usize) {
            let x: float32x4_t = black_box(vdupq_n_f32(0.0));
            let mut sums = black_box([vdupq_n_f32(0.0); SUMS]);
            for _ in 0..repetitions {
                for sum in &mut sums {
                    // SAFETY: arithmetic on registers.
                    unsafe {
                        asm!($instruction, sum = inout(vreg) *sum, x = in(vreg) x, options(pure, nomem, nostack));
                    }
                }
            }
            black_box(sums.into_iter().reduce(|a, b| vaddq_f32(a, b)));
        }
    };
}

dot!(dot_bf16, "neon,bf16", "bfdot {sum:v}.4s, {x:v}.8h, {x:v}.8h");
dot!(dot_int8, "neon,dotprod", "sdot {sum:v}.4s, {x:v}.16b, {x:v}.16b");
