//! A dense layer behind HTTP, with what a service needs around it: bounds on what waits, metrics, verified
//! results, and an end that finishes what was begun.
#![warn(clippy::pedantic)]

mod failure;
mod layer;
mod metrics;

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::failure::Failure;
use crate::layer::Layer;
use crate::metrics::Metrics;

/// How long a client may take to send a request.
const BODY_TIME: Duration = Duration::from_secs(10);

/// How long requests in flight may take after the signal to stop. More than [`BODY_TIME`].
const STOP_TIME: Duration = Duration::from_secs(25);

const JSON: &str = "application/json";

/// Serves a dense layer with GELU: POST /v1/forward, GET /healthz, GET /metrics.
#[derive(Debug, Parser)]
struct Arguments {
    /// The address to listen on; with port 0 the system chooses one.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// A safetensors file; without one the weights are random.
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The layer of the file: NAME.weight, outputs x inputs, and NAME.bias if there is one.
    #[arg(long, value_name = "NAME", default_value = "mlp.up")]
    layer: String,
    /// How many requests are computed at a time.
    #[arg(long, value_name = "N", default_value_t = available_parallelism().map_or(1, usize::from))]
    executors: usize,
    /// The CPU threads of one of them.
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads_per_run: usize,
    /// The most rows of a request.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive)]
    max_rows: usize,
    /// How many requests may wait for an executor; others are turned away.
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_waiting: usize,
}

fn positive(text: &str) -> Result<usize, String> {
    let rows = text.parse().map_err(|error| format!("{error}"))?;
    if rows == 0 { Err("expected at least 1".to_owned()) } else { Ok(rows) }
}

struct Service {
    layer: Arc<Layer>,
    metrics: Metrics,
    /// A permit for each request that is computed or waits: who gets none is turned away.
    admitted: Arc<Semaphore>,
    /// A permit for each that is computed. Requests wait for one here, where they take no thread, and then
    /// find an executor idle.
    computing: Arc<Semaphore>,
}

impl Service {
    fn new(arguments: &Arguments) -> ane_matmul::Result<Self> {
        let layer = Arc::new(Layer::open(arguments)?);
        let computing = arguments.executors.min(Semaphore::MAX_PERMITS);
        let admitted = computing.saturating_add(arguments.max_waiting).min(Semaphore::MAX_PERMITS);
        Ok(Self {
            metrics: Metrics::new(Arc::clone(&layer)),
            layer,
            admitted: Arc::new(Semaphore::new(admitted)),
            computing: Arc::new(Semaphore::new(computing)),
        })
    }

    async fn answer(&self, request: Request) -> Result<Vec<u8>, Failure> {
        let body = self.body(request).await?;
        let Ok(admitted) = Arc::clone(&self.admitted).try_acquire_owned() else {
            self.metrics.rejected.inc();
            return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests are waiting"));
        };
        let computing = Arc::clone(&self.computing).acquire_owned().await.map_err(Failure::internal)?;
        let layer = Arc::clone(&self.layer);
        // It goes on when the client goes away: the permits are its own until it ends.
        let computed = tokio::task::spawn_blocking(move || {
            let _permits = (admitted, computing);
            layer.forward(&body)
        });
        let (rows, json) = computed.await.map_err(Failure::internal)??;
        self.metrics.rows.inc_by(rows as u64);
        Ok(json)
    }

    async fn body(&self, request: Request) -> Result<Bytes, Failure> {
        // It has the limit of the layer `DefaultBodyLimit`.
        match timeout(BODY_TIME, Bytes::from_request(request, &())).await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(Failure::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("expected at most {} bytes; send fewer rows at a time", self.layer.body_limit()),
            )),
            Ok(Err(rejection)) => Err(Failure::new(rejection.status(), rejection.body_text())),
            Err(_) => Err(Failure::new(
                StatusCode::REQUEST_TIMEOUT,
                format!("expected the whole body within {} seconds", BODY_TIME.as_secs()),
            )),
        }
    }
}

async fn forward(State(service): State<Arc<Service>>, request: Request) -> Response {
    let (started, _in_flight) = (Instant::now(), service.metrics.start());
    let response = match service.answer(request).await {
        Ok(json) => ([(header::CONTENT_TYPE, JSON)], json).into_response(),
        Err(failure) => failure.into_response(),
    };
    service.metrics.answered(response.status(), started.elapsed());
    response
}

async fn metrics(State(service): State<Arc<Service>>) -> Result<Response, Failure> {
    let text = service.metrics.text().map_err(Failure::internal)?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

fn router(service: Service) -> Router {
    let limit = DefaultBodyLimit::max(service.layer.body_limit());
    let help = "expected POST /v1/forward, GET /healthz or GET /metrics";
    Router::new()
        .route("/v1/forward", post(forward).layer(limit))
        .route("/healthz", get(async || "ok\n"))
        .route("/metrics", get(metrics))
        .fallback(async move || Failure::new(StatusCode::NOT_FOUND, help))
        .method_not_allowed_fallback(async move || Failure::new(StatusCode::METHOD_NOT_ALLOWED, help))
        .with_state(Arc::new(service))
}

/// Returns on Ctrl-C or SIGTERM.
async fn stop_signal() {
    let interrupted = async { tokio::signal::ctrl_c().await.expect("a handler for Ctrl-C") };
    #[cfg(unix)]
    let terminated = async {
        use tokio::signal::unix::{SignalKind, signal};
        signal(SignalKind::terminate()).expect("a handler for SIGTERM").recv().await;
    };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<()>();
    tokio::select! {
        () = interrupted => {}
        () = terminated => {}
    }
}

#[tokio::main]
async fn serve(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let router = router(Service::new(arguments)?);
    let listener = TcpListener::bind(arguments.listen).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            log::warn!("TCP_NODELAY: {error}");
        }
    });
    tokio::select! {
        // Stops accepting at the signal, and returns when all requests are answered.
        served = axum::serve(listener, router).with_graceful_shutdown(stop_signal()) => served?,
        () = async { stop_signal().await; sleep(STOP_TIME).await } => {
            return Err(format!("requests were cut off {} s after the signal", STOP_TIME.as_secs()).into());
        }
    }
    log::info!("stopped");
    Ok(())
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match serve(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
