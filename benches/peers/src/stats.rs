//! Medians, and what repeated runs say about a ratio.

/// A ratio with the interval that its runs give.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Interval {
    pub(crate) low: f64,
    pub(crate) middle: f64,
    pub(crate) high: f64,
}

/// The median; NaN of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The share of all cases in which the interval must hold the true median: what five runs give from
/// their smallest to their largest.
const COVERAGE: f64 = 0.9375;

impl Interval {
    /// The median of `values`, between the innermost pair of order statistics that holds the true
    /// median often enough whatever the distribution; with few values these are the extremes.
    pub(crate) fn of(values: &[f64]) -> Self {
        let sorted = sorted(values);
        let n = sorted.len();
        if n == 0 {
            return Self { low: f64::NAN, middle: f64::NAN, high: f64::NAN };
        }
        // P(fewer than `dropped` + 1 values on one side of the median), of n fair coins.
        let mut dropped = 0;
        let mut one_side = 0.5f64.powi(i32::try_from(n).unwrap_or(i32::MAX));
        let mut term = one_side;
        while 2 * (dropped + 1) < n {
            term *= (n - dropped) as f64 / (dropped + 1) as f64;
            if 1.0 - 2.0 * (one_side + term) < COVERAGE {
                break;
            }
            one_side += term;
            dropped += 1;
        }
        Self { low: sorted[dropped], middle: median(values), high: sorted[n - 1 - dropped] }
    }

    /// How much faster `own` is than `other`, run by run: both in time.
    pub(crate) fn of_speed(own_ns: &[f64], other_ns: &[f64]) -> Self {
        let ratios: Vec<f64> = own_ns.iter().zip(other_ns).map(|(own, other)| other / own).collect();
        Self::of(&ratios)
    }

    /// Whether the interval reaches `target`.
    pub(crate) fn reaches(&self, target: f64) -> bool {
        self.high >= target
    }
}

/// The geometric mean; NaN of nothing.
pub(crate) fn geometric_mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0u32);
    for value in values {
        sum += value.ln();
        count += 1;
    }
    (sum / f64::from(count)).exp()
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn five_runs_give_their_extremes() {
        let interval = Interval::of(&[1.0, 0.9, 1.2, 1.1, 0.95]);
        assert_eq!(interval, Interval { low: 0.9, middle: 1.0, high: 1.2 });
    }

    #[test]
    fn more_runs_drop_outliers() {
        let values: Vec<f64> = (0..20).map(f64::from).collect();
        let interval = Interval::of(&values);
        // Of 20 fair coins, 5 or fewer heads come with probability 0.0207, 6 or fewer with 0.0577.
        assert_eq!((interval.low, interval.high), (5.0, 14.0));
        assert_eq!(Interval::of(&[2.0]), Interval { low: 2.0, middle: 2.0, high: 2.0 });
    }

    #[test]
    fn speed_is_paired_by_run() {
        let interval = Interval::of_speed(&[1.0, 2.0, 4.0], &[2.0, 4.0, 8.0]);
        assert_eq!(interval, Interval { low: 2.0, middle: 2.0, high: 2.0 });
        assert!(interval.reaches(2.0) && !interval.reaches(2.1));
    }

    #[test]
    fn geometric_means() {
        assert_abs_diff_eq!(geometric_mean([0.5, 2.0, 1.0]), 1.0, epsilon = 1e-12);
        assert!(geometric_mean([]).is_nan());
    }
}
