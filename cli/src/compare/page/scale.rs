//! Logarithmic scales of plots.

/// Maps values to places in a picture.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    start: f64,
    end: f64,
}

impl Scale {
    /// A scale over positive values, with the factor `room` free on both sides; from `start` to
    /// `end` in the picture.
    pub(super) fn new(values: impl Iterator<Item = f64>, room: f64, start: f64, end: f64) -> Self {
        let (low, high) = values
            .filter(|value| value.is_finite() && *value > 0.0)
            .fold((f64::INFINITY, 0f64), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low > high { (1.0, 10.0) } else { (low / room, high * room) };
        Self { low, high, start, end }
    }

    /// Where `value` stands.
    pub(super) fn at(&self, value: f64) -> f64 {
        let part = (value / self.low).ln() / (self.high / self.low).ln();
        self.start + part * (self.end - self.start)
    }

    /// Those of `values` that are on the scale, each at least `distance` from the one before.
    pub(super) fn spaced(&self, values: &[f64], distance: f64) -> Vec<f64> {
        let mut kept: Vec<f64> = Vec::new();
        for &value in values.iter().filter(|value| (self.low..=self.high).contains(*value)) {
            if kept.last().is_none_or(|&last| (self.at(value) - self.at(last)).abs() >= distance) {
                kept.push(value);
            }
        }
        kept
    }

    /// Round values: powers of ten on a long scale, with 2 and 5 on a shorter one, even steps where
    /// those would be too few.
    pub(super) fn ticks(&self) -> Vec<f64> {
        let span = self.high / self.low;
        if span < 4.0 {
            let step = round_step((self.high - self.low) / 4.0);
            return up_to(self.high, (self.low / step).ceil() * step, |tick| tick + step);
        }
        let steps: &[f64] = if span < 1e4 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        up_to(self.high, 10f64.powf(self.low.log10().floor()), |decade| decade * 10.0)
            .into_iter()
            .flat_map(|decade| steps.iter().map(move |step| step * decade))
            .filter(|tick| (self.low..=self.high).contains(tick))
            .collect()
    }
}

fn up_to(high: f64, first: f64, next: impl Fn(f64) -> f64) -> Vec<f64> {
    std::iter::successors(Some(first), |&tick| Some(next(tick))).take_while(|&tick| tick <= high).collect()
}

/// 1, 2 or 5 times a power of ten, at least `step`.
fn round_step(step: f64) -> f64 {
    let decade = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0]
        .into_iter()
        .map(|factor| factor * decade)
        .find(|&round| round >= step)
        .unwrap_or(10.0 * decade)
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    #[test]
    fn values_lie_between_the_ends() {
        let scale = Scale::new([10.0, 1000.0].into_iter(), 1.0, 50.0, 250.0);
        assert_abs_diff_eq!(scale.at(10.0), 50.0, epsilon = 1e-9);
        assert_abs_diff_eq!(scale.at(100.0), 150.0, epsilon = 1e-9);
        assert_abs_diff_eq!(scale.at(1000.0), 250.0, epsilon = 1e-9);
    }

    #[test]
    fn every_range_has_at_least_two_ticks_and_not_too_many() {
        for (low, high) in [(1.0, 1.0), (101.0, 168.0), (0.02, 0.3), (3.0, 900.0), (1e-3, 1e9), (7e8, 8e8)] {
            let ticks = Scale::new([low, high].into_iter(), 1.3, 0.0, 1.0).ticks();
            assert!((2..=20).contains(&ticks.len()), "{low} to {high}: {ticks:?}");
            assert!(ticks.is_sorted());
        }
    }

    #[test]
    fn nothing_to_show_still_has_a_scale() {
        let scale = Scale::new(std::iter::empty(), 1.3, 0.0, 1.0);
        assert!(scale.at(5.0).is_finite());
        assert!(Scale::new([f64::NAN, 0.0].into_iter(), 1.3, 0.0, 1.0).at(5.0).is_finite());
    }

    #[test]
    fn crowded_ticks_are_left_out() {
        let scale = Scale::new([1.0, 100.0].into_iter(), 1.0, 0.0, 100.0);
        assert_eq!(scale.spaced(&[0.5, 1.0, 1.1, 10.0, 100.0, 200.0], 20.0), [1.0, 10.0, 100.0]);
    }
}
