//! What `/metrics` shows.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, prometheus_text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::layer::Layer;

#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    pub(crate) rows: Counter,
    pub(crate) rejected: Counter,
    in_flight: Gauge,
    seconds: Histogram,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    status: u16,
}

impl Metrics {
    pub(crate) fn new(layer: Arc<Layer>) -> Self {
        let mut registry = Registry::with_prefix("forward");
        let (requests, rows, rejected) = (Family::default(), Counter::default(), Counter::default());
        let in_flight = Gauge::default();
        // From a quarter of a millisecond to eight seconds.
        let seconds = Histogram::new(exponential_buckets(0.00025, 2.0, 16));
        registry.register("requests", "Requests that were answered, by status", requests.clone());
        registry.register("rows", "Rows that were computed", rows.clone());
        registry.register("rejected", "Requests turned away because too many were waiting", rejected.clone());
        registry.register(
            "in_flight",
            "Requests that are being read, waiting or computed",
            in_flight.clone(),
        );
        registry.register("seconds", "From the head of a request to its answer", seconds.clone());
        registry.register_collector(Box::new(OfPool(layer)));
        Self { registry, requests, rows, rejected, in_flight, seconds }
    }

    /// Counts a request as in flight until the guard is dropped, be it because its client went away.
    pub(crate) fn start(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    pub(crate) fn answered(&self, status: StatusCode, time: Duration) {
        self.requests.get_or_create(&Labels { status: status.as_u16() }).inc();
        self.seconds.observe(time.as_secs_f64());
    }

    /// In Prometheus' text format, version 0.0.4.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

pub(crate) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What the pool counts itself, read when it is asked for.
#[derive(Debug)]
struct OfPool(Arc<Layer>);

impl Collector for OfPool {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let pool = &self.0.pool;
        let checks = pool.checks();
        // The registry ends its own descriptions with a full stop.
        for (name, help, value) in [
            ("self_checks", "Runs whose result was verified.", checks.checked),
            ("self_check_mismatches", "Results that were wrong.", checks.mismatches),
            ("self_check_reruns", "Wrong results that were computed again.", checks.reruns),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        for (name, help, value) in [
            ("executors", "Executors of the pool.", pool.size()),
            ("executors_idle", "Executors that are idle.", pool.idle()),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}
