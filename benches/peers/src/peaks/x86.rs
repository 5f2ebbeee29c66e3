//! Loops of x86-64's multiply-add instructions.

use std::arch::x86_64::{
    __m512bh, __m512i, _mm256_add_ps, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_add_epi32, _mm512_add_ps,
    _mm512_castps_si512, _mm512_dpbf16_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_set1_epi8,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
};
use std::hint::black_box;
use std::mem::transmute;

use super::Loop;

/// Enough independent sums to cover two instructions a cycle with a latency of six.
const SUMS: usize = 12;

pub(super) fn detected() -> Vec<&'static str> {
    let mut names = Vec::new();
    macro_rules! detect {
        ($($feature:tt)*) => { $(if is_x86_feature_detected!($feature) { names.push($feature); })* };
    }
    detect!("avx2" "fma" "avx512f" "avx512bw" "avx512vnni" "avx512bf16");
    names
}

pub(super) fn loops() -> Vec<Loop> {
    let mut loops = Vec::new();
    if is_x86_feature_detected!("avx512f") {
        loops.push(arithmetic("f32", "avx512 fma", 16 * 2, fma_512));
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        loops.push(arithmetic("f32", "avx2 fma", 8 * 2, fma_256));
    }
    if is_x86_feature_detected!("avx512bf16") {
        loops.push(arithmetic("bf16", "avx512 vdpbf16ps", 32 * 2, dot_bf16));
    }
    if is_x86_feature_detected!("avx512vnni") {
        loops.push(arithmetic("int8", "avx512 vpdpbusd", 64 * 2, dot_int8));
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

#[target_feature(enable = "avx512f")]
fn fma_512(repetitions: usize) {
    let (x, y) = (black_box(_mm512_set1_ps(0.5)), black_box(_mm512_set1_ps(0.25)));
    let mut sums = black_box([_mm512_setzero_ps(); SUMS]);
    for _ in 0..repetitions {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(x, y, *sum);
        }
    }
    black_box(sums.into_iter().reduce(|a, b| _mm512_add_ps(a, b)));
}

#[target_feature(enable = "avx2,fma")]
fn fma_256(repetitions: usize) {
    let (x, y) = (black_box(_mm256_set1_ps(0.5)), black_box(_mm256_set1_ps(0.25)));
    let mut sums = black_box([_mm256_set1_ps(0.0); SUMS]);
    for _ in 0..repetitions {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(x, y, *sum);
        }
    }
    black_box(sums.into_iter().reduce(|a, b| _mm256_add_ps(a, b)));
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn dot_bf16(repetitions: usize) {
    // Pairs of bf16 ones.
    let ones = black_box(_mm512_castps_si512(_mm512_set1_ps(f32::from_bits(0x3f80_3f80))));
    // SAFETY: both are 512 bits of plain data.
    let x = unsafe { transmute::<__m512i, __m512bh>(ones) };
    let mut sums = black_box([_mm512_setzero_ps(); SUMS]);
    for _ in 0..repetitions {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, x, x);
        }
    }
    black_box(sums.into_iter().reduce(|a, b| _mm512_add_ps(a, b)));
}

#[target_feature(enable = "avx512f,avx512vnni,avx512bw")]
fn dot_int8(repetitions: usize) {
    let (x, y) = (black_box(_mm512_set1_epi8(1)), black_box(_mm512_set1_epi32(0x0101_0101)));
    let mut sums = black_box([_mm512_setzero_si512(); SUMS]);
    for _ in 0..repetitions {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, x, y);
        }
    }
    black_box(sums.into_iter().reduce(|a, b| _mm512_add_epi32(a, b)));
}
