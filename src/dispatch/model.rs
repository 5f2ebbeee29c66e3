//! What a product takes, from what others took: a cost model fitted to the samples of a series, and the
//! model's errors interpolated between them.

use crate::description::matmul::ElementTypes;
use crate::dispatch::profile::{Sample, Series};

/// The cost of a run is a sum of these, each not negative: the call (launch), the items of the batch,
/// arithmetic, operands that come with every run (copy), and all operands (bandwidth).
const RUN_TERMS: usize = 5;

/// The cost of compiling: the call, a constant B to be packed, and all operands, which the first run
/// meets cold.
const COMPILE_TERMS: usize = 3;

/// How far the model's error is alike, in octaves of a dimension, ...
const LENGTH_OCTAVES: f64 = 4.0;

/// ... and how much of it is noise instead, as a standard deviation of the logarithm: predicted runs
/// were off by 10 percent in the median (AMD EPYC Zen 5, virtual machine, 2026-11-24), compilations by more.
const RUN_NOISE: f64 = 0.1;
const COMPILE_NOISE: f64 = 0.3;

/// The standard deviation of the model's error, as a logarithm.
const SIGNAL: f64 = 0.5;

/// Predicted times of a product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Times {
    pub compile_ns: f64,
    pub run_ns: f64,
}

/// A product as the model sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point {
    run: [f64; RUN_TERMS],
    compile: [f64; COMPILE_TERMS],
    place: [f64; 5],
}

impl Point {
    #[allow(clippy::cast_precision_loss, reason = "estimates")]
    pub(crate) fn new(
        batch: usize,
        m: usize,
        n: usize,
        k: usize,
        constant_b: bool,
        types: ElementTypes,
    ) -> Self {
        let [batch, m, n, k] = [batch, m, n, k].map(|dimension| dimension.max(1) as f64);
        let bytes = |bits: usize| bits as f64 / 8.0;
        let a_bytes = batch * m * k * bytes(types.a.bits());
        let b_bytes = batch * k * n * bytes(types.b.bits());
        let c_bytes = batch * m * n * bytes(types.output.bits());
        let all_bytes = a_bytes + b_bytes + c_bytes;
        let constant_bytes = if constant_b { b_bytes } else { 0.0 };
        Self {
            run: [1.0, batch, 2.0 * batch * m * n * k, all_bytes - constant_bytes, all_bytes],
            compile: [1.0, constant_bytes, all_bytes],
            place: [octaves(batch), octaves(m), octaves(n), octaves(k), if constant_b { 1.5 } else { 0.0 }],
        }
    }

    fn of(sample: &Sample, types: ElementTypes) -> Self {
        Self::new(sample.batch, sample.m, sample.n, sample.k, sample.constant_b, types)
    }
}

/// Where a dimension lies: its logarithm. 1 lies apart, since engines treat vectors in another way.
fn octaves(dimension: f64) -> f64 {
    if dimension <= 1.0 { -1.5 } else { dimension.log2() }
}

/// The model of one series.
#[derive(Debug)]
pub(crate) struct Model {
    run: Fit<RUN_TERMS>,
    compile: Fit<COMPILE_TERMS>,
}

impl Model {
    pub(crate) fn new(series: &Series) -> Self {
        let points: Vec<Point> = series.samples.iter().map(|s| Point::of(s, series.types)).collect();
        let places: Vec<[f64; 5]> = points.iter().map(|point| point.place).collect();
        let run: Vec<_> = points.iter().zip(&series.samples).map(|(p, s)| (p.run, s.run_ns)).collect();
        // Whoever compiles pays for the first run too.
        let compile: Vec<_> = points
            .iter()
            .zip(&series.samples)
            .map(|(p, s)| (p.compile, (s.compile_ns + s.first_run_ns).max(1.0)))
            .collect();
        Self { run: Fit::new(&run, &places, RUN_NOISE), compile: Fit::new(&compile, &places, COMPILE_NOISE) }
    }

    pub(crate) fn predict(&self, point: &Point) -> Times {
        Times {
            compile_ns: self.compile.predict(&point.compile, &point.place),
            run_ns: self.run.predict(&point.run, &point.place),
        }
    }
}

/// Coefficients, and the errors that they leave.
#[derive(Debug)]
struct Fit<const N: usize> {
    coefficients: [f64; N],
    places: Vec<[f64; 5]>,
    weights: Vec<f64>,
}

impl<const N: usize> Fit<N> {
    fn new(samples: &[([f64; N], f64)], places: &[[f64; 5]], noise: f64) -> Self {
        let coefficients = fit(samples);
        let errors = samples.iter().map(|(terms, ns)| (ns / sum(&coefficients, terms)).ln()).collect();
        Self { coefficients, places: places.to_vec(), weights: interpolation_weights(places, errors, noise) }
    }

    fn predict(&self, terms: &[f64; N], place: &[f64; 5]) -> f64 {
        let error: f64 = self.places.iter().zip(&self.weights).map(|(p, w)| w * alike(p, place)).sum();
        sum(&self.coefficients, terms) * error.exp()
    }
}

fn sum<const N: usize>(coefficients: &[f64; N], terms: &[f64; N]) -> f64 {
    let ns: f64 = coefficients.iter().zip(terms).map(|(c, t)| c * t).sum();
    ns.max(1e-3)
}

/// Coefficients, none negative, with the least sum of squared relative errors: coordinate descent,
/// which converges since the problem is convex.
fn fit<const N: usize>(samples: &[([f64; N], f64)]) -> [f64; N] {
    const ROUNDS: usize = 400;
    // Scaled, so that every column has length 1.
    let mut lengths = [0f64; N];
    for (terms, ns) in samples {
        for (length, term) in lengths.iter_mut().zip(terms) {
            *length += (term / ns).powi(2);
        }
    }
    let lengths = lengths.map(|length| length.sqrt().max(f64::MIN_POSITIVE));
    let mut gram = [[0f64; N]; N];
    let mut target = [0f64; N];
    for (terms, ns) in samples {
        let row: [f64; N] = std::array::from_fn(|i| terms[i] / ns / lengths[i]);
        for i in 0..N {
            target[i] += row[i];
            for j in 0..N {
                gram[i][j] += row[i] * row[j];
            }
        }
    }
    let mut scaled = [0f64; N];
    for _ in 0..ROUNDS {
        for i in 0..N {
            if gram[i][i] > 0.0 {
                let others: f64 = (0..N).filter(|&j| j != i).map(|j| gram[i][j] * scaled[j]).sum();
                scaled[i] = ((target[i] - others) / gram[i][i]).max(0.0);
            }
        }
    }
    std::array::from_fn(|i| scaled[i] / lengths[i])
}

/// How alike errors at two places are: 1 at the same, falling with the distance.
///
/// Matern's covariance with smoothness 3/2 (Rasmussen and Williams, Gaussian Processes for Machine
/// Learning, 4.2): smooth, but free to bend where an engine changes its method.
fn alike(a: &[f64; 5], b: &[f64; 5]) -> f64 {
    let distance = a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt();
    let scaled = 3f64.sqrt() * distance / LENGTH_OCTAVES;
    (1.0 + scaled) * (-scaled).exp()
}

/// The weights of a Gaussian process's mean: `(K + noise^2 I)^-1 errors`, by Cholesky's method
/// (Rasmussen and Williams, algorithm 2.1).
fn interpolation_weights(places: &[[f64; 5]], errors: Vec<f64>, noise: f64) -> Vec<f64> {
    let count = places.len();
    let noise = (noise / SIGNAL).powi(2).max(1e-9);
    let mut lower = vec![0f64; count * count];
    for i in 0..count {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|p| lower[i * count + p] * lower[j * count + p]).sum();
            let value = alike(&places[i], &places[j]) - dot;
            lower[i * count + j] =
                if i == j { (value + noise).max(noise * 1e-3).sqrt() } else { value / lower[j * count + j] };
        }
    }
    let mut weights = errors;
    for i in 0..count {
        let dot: f64 = (0..i).map(|p| lower[i * count + p] * weights[p]).sum();
        weights[i] = (weights[i] - dot) / lower[i * count + i];
    }
    for i in (0..count).rev() {
        let dot: f64 = (i + 1..count).map(|p| lower[p * count + i] * weights[p]).sum();
        weights[i] = (weights[i] - dot) / lower[i * count + i];
    }
    weights
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;

    fn close(got: f64, expected: f64) {
        assert_relative_eq!(got, expected, epsilon = 1e-6, max_relative = 1e-6);
    }

    #[test]
    fn a_vector_lies_apart_from_a_narrow_matrix() {
        assert_eq!([0.5, 1.0].map(octaves), [-1.5; 2]);
        close(octaves(2.0), 1.0);
        close(octaves(8.0), 3.0);
    }

    #[test]
    fn errors_are_less_alike_the_farther_they_are_apart() {
        let place = [1.0, 2.0, 3.0, 4.0, 0.0];
        assert_eq!(alike(&place, &place), 1.0);
        // At one length sqrt(3): 1 + sqrt(3) times e^-sqrt(3).
        let root = 3f64.sqrt();
        close(alike(&place, &[5.0, 2.0, 3.0, 4.0, 0.0]), (1.0 + root) * (-root).exp());
        close(alike(&place, &[1.0, 2.0, 3.0, 0.0, 3.0]), (1.0 + 1.25 * root) * (-1.25 * root).exp());
    }

    #[test]
    fn costs_are_recovered_from_exact_samples_and_none_is_negative() {
        let cost = |terms: [f64; 3]| 100.0 * terms[0] + 0.25 * terms[2];
        let terms =
            [[1.0, 5.0, 1.0], [1.0, 1.0, 100.0], [1.0, 70.0, 1e4], [1.0, 300.0, 2e4], [1.0, 9.0, 1e6]];
        let [call, nothing, bytes] = fit(&terms.map(|terms| (terms, cost(terms))));
        close(call, 100.0);
        close(bytes, 0.25);
        assert!((0.0..1e-3).contains(&nothing), "{nothing}");
        assert_eq!(fit(&[([1.0, 1.0], 1.0), ([1.0, 2.0], 0.5)])[1], 0.0);
    }

    #[test]
    fn weights_solve_the_equations_of_the_interpolation() {
        let places =
            [[0.0; 5], [1.0, 0.0, 2.0, 0.0, 0.0], [3.0, 5.0, 0.0, 1.0, 1.5], [-1.5, 3.0, 7.0, 8.0, 0.0]];
        let errors = [0.5, -0.25, 0.125, 1.0];
        let noise = 0.3;
        let weights = interpolation_weights(&places, errors.to_vec(), noise);
        for (i, error) in errors.into_iter().enumerate() {
            let sum: f64 = (0..4).map(|j| weights[j] * alike(&places[i], &places[j])).sum();
            close(sum + weights[i] * (noise / SIGNAL).powi(2), error);
        }
        // One place twice and hardly any noise: each counts half.
        let weights = interpolation_weights(&[[1.0; 5]; 2], vec![1.0; 2], 1e-9);
        close(weights[0], 0.5);
        close(weights[1], 0.5);
    }

    #[test]
    fn a_prediction_carries_the_errors_of_its_neighbours() {
        let samples = [([1.0], 100.0), ([1.0], 300.0)];
        let places = [[0.0; 5], [40.0, 0.0, 0.0, 0.0, 0.0]];
        let fit = Fit::new(&samples, &places, 1e-9);
        close(fit.predict(&[1.0], &places[0]), 100.0);
        close(fit.predict(&[1.0], &places[1]), 300.0);
        // Far from both nothing is known but the fit: the least squares of relative errors.
        close(fit.predict(&[1.0], &[0.0, 400.0, 0.0, 0.0, 0.0]), 120.0);
    }
}
