//! A profile, and the models fitted to it.

use std::sync::OnceLock;

use super::model::{Model, Point, Times};
use crate::backend::BackendId;
use crate::description::matmul::MatMul;
use crate::description::options::Device;
use crate::dispatch::profile::{Profile, Series};

/// A profile that predicts; a series is fitted when it is first asked.
#[derive(Debug)]
pub(crate) struct Predictor {
    profile: Profile,
    models: Vec<OnceLock<Model>>,
    /// Why the measurements that were there are not used.
    problem: Option<String>,
}

/// What a prediction is asked of.
pub(crate) struct Question<'a> {
    pub backend: &'a BackendId,
    pub description: &'a str,
    pub device: Device,
    pub threads: usize,
}

impl Predictor {
    pub(crate) fn new(profile: Profile) -> Self {
        let (profile, difference) = profile.for_this_machine();
        let problem =
            difference.map(|difference| format!("the profile is of another machine or build: {difference}"));
        let models = profile.series().iter().map(|_| OnceLock::new()).collect();
        Self { profile, models, problem }
    }

    /// Measurements that cannot be used, and why.
    #[cfg(feature = "profile")]
    pub(crate) fn unusable(problem: String) -> Self {
        Self {
            problem: Some(problem),
            ..Self::new(Profile::new(crate::dispatch::machine::MachineKey::here()))
        }
    }

    pub(crate) fn profile(&self) -> &Profile {
        &self.profile
    }

    pub(crate) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// # Errors
    /// Why nothing is known.
    pub(crate) fn predict(&self, question: &Question<'_>, product: &MatMul) -> Result<Times, String> {
        let types = product.types();
        let point =
            Point::new(product.batch(), product.m(), product.n(), product.k(), product.constant_b(), *types);
        let same_types = |series: &Series| {
            let measured = &series.types;
            (measured.a, measured.b, measured.accumulator, measured.output)
                == (types.a, types.b, types.accumulator, types.output)
        };
        let of_backend: Vec<usize> = (0..self.models.len())
            .filter(|&index| {
                let series = &self.profile.series()[index];
                series.backend == *question.backend && same_types(series)
            })
            .collect();
        if of_backend.is_empty() {
            return Err("not in the profile with these types".into());
        }
        let current: Vec<usize> = of_backend
            .iter()
            .copied()
            .filter(|&index| self.profile.series()[index].description == question.description)
            .collect();
        if current.is_empty() {
            return Err(format!("measured as another version than `{}`", question.description));
        }
        // A backend bound to a device does the same for a request of that device as for no request; only
        // the Neural Engine as a candidate is another thing.
        let exact = current.iter().any(|&index| self.profile.series()[index].device == question.device);
        let device = if exact { question.device } else { Device::Unknown };
        if !exact && question.device == Device::NeuralEngine {
            return Err("not measured with the Neural Engine as a candidate".into());
        }
        let usable: Vec<usize> =
            current.into_iter().filter(|&index| self.profile.series()[index].device == device).collect();
        self.at_threads(&usable, question.threads, &point).ok_or_else(|| "not in the profile".into())
    }

    /// Between measured numbers of threads the logarithms are interpolated; beyond them the nearest counts.
    #[allow(clippy::cast_precision_loss, reason = "numbers of threads")]
    fn at_threads(&self, indices: &[usize], threads: usize, point: &Point) -> Option<Times> {
        let threads_of = |&&index: &&usize| self.profile.series()[index].threads;
        let below = indices.iter().filter(|index| threads_of(index) <= threads).max_by_key(threads_of);
        let above = indices.iter().filter(|index| threads_of(index) >= threads).min_by_key(threads_of);
        let predict = |&index: &usize| {
            self.models[index].get_or_init(|| Model::new(&self.profile.series()[index])).predict(point)
        };
        match (below, above) {
            (Some(low), Some(high)) if low != high => {
                let log = |count: usize| (count as f64).ln();
                let (low_threads, high_threads) = (threads_of(&low), threads_of(&high));
                let share = (log(threads) - log(low_threads)) / (log(high_threads) - log(low_threads));
                let (low, high) = (predict(low), predict(high));
                let between = |low: f64, high: f64| low.powf(1.0 - share) * high.powf(share);
                Some(Times {
                    compile_ns: between(low.compile_ns, high.compile_ns),
                    run_ns: between(low.run_ns, high.run_ns),
                })
            }
            (Some(index), _) | (None, Some(index)) => Some(predict(index)),
            (None, None) => None,
        }
    }
}
