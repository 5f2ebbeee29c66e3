//! What compiling costs when it is spread over the runs.

use crate::compare::measure::{Contender, Timing};

/// A backend is the cheapest, compilation included, for `first..=last` runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cheapest<'a> {
    pub(crate) backend: &'a Contender,
    pub(crate) first: u64,
    /// `None`: from `first` on.
    pub(crate) last: Option<u64>,
}

/// The time of `runs` runs together: compiling, the first run, and the median for every other.
#[allow(clippy::cast_precision_loss, reason = "nanoseconds and counts below 2^53")]
pub(crate) fn total_ns(timing: &Timing, runs: u64) -> f64 {
    start_ns(timing) + runs.saturating_sub(1) as f64 * timing.median_ns
}

/// Compiling and the first run.
#[allow(clippy::cast_precision_loss, reason = "nanoseconds below 2^53")]
fn start_ns(timing: &Timing) -> f64 {
    (timing.compile_ns + timing.first_run_ns) as f64
}

/// Which backend is the cheapest for how many runs of one product: the lower envelope of their
/// total times, from one run on.
pub(crate) fn cheapest<'a>(timings: &[&'a Timing]) -> Vec<Cheapest<'a>> {
    let by_start_then_pace = |a: &&&Timing, b: &&&Timing| {
        start_ns(a).total_cmp(&start_ns(b)).then(a.median_ns.total_cmp(&b.median_ns))
    };
    let Some(&(mut current)) = timings.iter().min_by(by_start_then_pace) else { return Vec::new() };
    let mut ranges = vec![Cheapest { backend: &current.backend, first: 1, last: None }];
    loop {
        let next = timings
            .iter()
            .filter(|other| other.median_ns < current.median_ns)
            .map(|other| (overtakes_at(other, current), *other))
            .min_by(|a, b| a.0.cmp(&b.0).then(a.1.median_ns.total_cmp(&b.1.median_ns)));
        let Some((runs, other)) = next else { return ranges };
        if let Some(range) = ranges.last_mut() {
            range.last = Some(runs - 1);
        }
        ranges.push(Cheapest { backend: &other.backend, first: runs, last: None });
        current = other;
    }
}

/// The fewest runs, 2 at least, that take `faster` less time than `slower`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive; saturates")]
fn overtakes_at(faster: &Timing, slower: &Timing) -> u64 {
    let behind_ns = (start_ns(faster) - start_ns(slower)).max(0.0);
    let repaid_after = (behind_ns / (slower.median_ns - faster.median_ns)).floor() as u64;
    repaid_after.saturating_add(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::fixture::timing;

    fn backend(name: &str, compile_ns: u128, first_run_ns: u128, median_ns: f64) -> Timing {
        Timing { compile_ns, first_run_ns, ..timing(256, name, median_ns) }
    }

    fn ranges(timings: &[Timing]) -> Vec<(String, u64, Option<u64>)> {
        let timings: Vec<&Timing> = timings.iter().collect();
        cheapest(&timings).into_iter().map(|c| (c.backend.to_string(), c.first, c.last)).collect()
    }

    #[test]
    fn each_range_is_the_cheapest_in_it_and_not_beyond() {
        let timings = [
            backend("cpu", 1_000, 1_100, 1_000.0),
            backend("metal", 50_000, 900, 300.0),
            backend("mpsgraph", 200_000, 400, 200.0),
            backend("never", 300_000, 400, 250.0),
        ];
        let found = ranges(&timings);
        assert_eq!(
            found.iter().map(|range| range.0.as_str()).collect::<Vec<_>>(),
            ["cpu", "metal", "mpsgraph"]
        );
        assert_eq!((found[0].1, found[2].2), (1, None));
        for runs in (1..4000).chain([1_000_000]) {
            let range = found.iter().find(|r| r.1 <= runs && r.2.is_none_or(|last| runs <= last)).unwrap();
            let best = timings.iter().map(|timing| total_ns(timing, runs)).fold(f64::INFINITY, f64::min);
            let chosen = timings.iter().find(|timing| timing.backend.to_string() == range.0).unwrap();
            assert!(total_ns(chosen, runs) <= best, "{} at {runs} runs", range.0);
        }
    }

    #[test]
    fn a_tie_goes_to_the_backend_that_is_there_first() {
        // At 11 runs both have taken 1,100 ns: the slower one stays until it is beaten.
        let found = ranges(&[backend("a", 0, 100, 100.0), backend("b", 600, 0, 50.0)]);
        assert_eq!(found, [("a".to_owned(), 1, Some(11)), ("b".to_owned(), 12, None)]);
    }

    #[test]
    fn one_backend_or_none() {
        assert!(ranges(&[]).is_empty());
        assert_eq!(ranges(&[backend("a", 5, 5, 0.0)]), [("a".to_owned(), 1, None)]);
    }

    #[test]
    fn without_a_measurable_difference_nothing_changes() {
        let found = ranges(&[backend("a", 0, 1, 1.0), backend("b", u128::MAX >> 70, 1, 1.0 - f64::EPSILON)]);
        assert_eq!(found.len(), 2);
        assert!(found[1].1 > 1 << 50, "{found:?}");
    }
}
