//! The service as its clients see it: right answers under load, and the right refusals.
#![warn(clippy::pedantic)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use ane_matmul::accuracy::Reference;
use ane_matmul::safetensors::{QuantizeOptions, SafetensorsFile};
use ane_matmul::{Activation, ElementType, Inputs, Tensor};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};
use tempfile::TempDir;

const INPUTS: usize = 192;
const OUTPUTS: usize = 256;
const MAX_ROWS: usize = 16;
const CLIENTS: usize = 8;
const REQUESTS: usize = 4000;
const EXECUTORS: usize = 2;

/// What hangs fails the test after this; nothing here takes long.
const LIMIT: Duration = Duration::from_secs(120);

/// One service at a time: the machine is the first's then.
fn alone() -> impl Drop {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ane-matmul-example-service"))
            .args(["--listen", "127.0.0.1:0"])
            .args(arguments)
            .env("RUST_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the service starts");
        let stdout = child.stdout.take().expect("piped");
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).map(|_| sender.send(line))
        });
        let line = receiver.recv_timeout(LIMIT).expect("a line");
        let address =
            line.trim_end().strip_prefix("listening on http://").expect(&line).parse().expect(&line);
        Self { child, address }
    }

    /// With the weights of `model`.
    fn of(model: &Path, arguments: &[&str]) -> Self {
        Self::start(&[&["--model", model.to_str().expect("UTF-8")], arguments].concat())
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn get(&self, path: &str) -> (u16, String) {
        let (status, _, text) = read(client().get(self.url(path)).call()).expect("an answer");
        (status, text)
    }

    fn post(&self, client: &ureq::Agent, body: &str) -> Result<(u16, Option<String>, String), ureq::Error> {
        read(client.post(self.url("/v1/forward")).header("content-type", "application/json").send(body))
    }

    /// A metric with these labels, or without them the sum over all.
    fn metric(&self, name: &str) -> usize {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200);
        let lines = text.lines().filter_map(|line| line.rsplit_once(' '));
        let named = lines.filter(|(key, _)| *key == name || key.split('{').next() == Some(name));
        named.map(|(_, value)| value.parse::<usize>().expect(value)).sum()
    }

    /// How many requests were answered with a status.
    fn answered(&self, status: u16) -> usize {
        self.metric(&format!("forward_requests_total{{status=\"{status}\"}}"))
    }

    fn wait_for(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(start.elapsed() < LIMIT, "the service does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[cfg(unix)]
    fn terminate(&self) {
        use rustix::process::{Pid, Signal, kill_process};
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("it runs");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn client() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(LIMIT)).build().into()
}

/// Status, `retry-after`, and body.
fn read(
    response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<(u16, Option<String>, String), ureq::Error> {
    let mut response = response?;
    let retry = response.headers().get("retry-after").map(|value| value.to_str().expect("ASCII").to_owned());
    Ok((response.status().as_u16(), retry, response.body_mut().read_to_string()?))
}

fn normal(rows: usize, cols: usize, sigma: f64, seed: u64) -> Tensor<f32> {
    Tensor::random_normal_f32(rows, cols, sigma, seed).expect("memory")
}

/// A file with the layer `mlp.up`.
fn model(directory: &TempDir) -> std::path::PathBuf {
    let bytes =
        |tensor: &Tensor<f32>| -> Vec<u8> { tensor.data().iter().flat_map(|x| x.to_le_bytes()).collect() };
    let (weight, bias) = (bytes(&normal(OUTPUTS, INPUTS, 0.05, 1)), bytes(&normal(1, OUTPUTS, 1.0, 2)));
    let tensors = [
        ("mlp.up.weight", TensorView::new(Dtype::F32, vec![OUTPUTS, INPUTS], &weight).expect("fits")),
        ("mlp.up.bias", TensorView::new(Dtype::F32, vec![OUTPUTS], &bias).expect("fits")),
    ];
    let path = directory.path().join("model.safetensors");
    serialize_to_file(tensors, None, &path).expect("a file");
    path
}

/// A request, and the float64 result with its error bounds.
struct Case {
    rows: usize,
    body: String,
    reference: Reference,
}

impl Case {
    fn of(model: &Path, rows: usize, seed: u64) -> Self {
        let file = SafetensorsFile::read(model).expect("a file");
        let layer = file.linear("mlp.up").expect("a layer").max_rows(rows).activation(Activation::Gelu);
        let x = normal(rows, INPUTS, 1.0, seed);
        let reference = Reference::new(&layer.build().expect("valid"), &Inputs::new(&x)).expect("memory");
        let body = json!({ "rows": x.data().chunks(INPUTS).collect::<Vec<_>>() }).to_string();
        Self { rows, body, reference }
    }

    fn check(&self, answer: &str) {
        let answer: Value = serde_json::from_str(answer).expect(answer);
        let rows = answer["rows"].as_array().expect("rows");
        assert_eq!(rows.len(), self.rows);
        let mut data = Vec::new();
        for row in rows {
            let row = row.as_array().expect("a row");
            assert_eq!(row.len(), OUTPUTS);
            #[allow(clippy::cast_possible_truncation, reason = "it was written from an f32")]
            data.extend(row.iter().map(|x| x.as_f64().expect("a number") as f32));
        }
        let got = Tensor::from_vec(data, self.rows, OUTPUTS).expect("fits");
        let deviation = self.reference.compare(&got).expect("fits");
        assert!(deviation.is_within_bound(), "{deviation:?}");
    }
}

#[test]
fn answers_are_right_under_load_and_the_metrics_add_up() {
    let _alone = alone();
    let directory = TempDir::new().expect("a directory");
    let model = model(&directory);
    let cases: Vec<Case> =
        (1..=MAX_ROWS).flat_map(|rows| [3, 4].map(|seed| Case::of(&model, rows, seed))).collect();
    let server = Server::of(&model, &["--executors", "2", "--max-rows", "16", "--max-waiting", "64"]);
    assert_eq!(server.get("/healthz").0, 200);

    let (next, start) = (AtomicUsize::new(0), Instant::now());
    let work = || {
        let (client, mut times, mut rows) = (client(), Vec::new(), 0);
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= REQUESTS {
                return (times, rows);
            }
            // All cases in turn, each client from another place.
            let case = &cases[index * 7 % cases.len()];
            let start = Instant::now();
            let (status, _, answer) = server.post(&client, &case.body).expect("an answer");
            times.push(start.elapsed());
            assert_eq!(status, 200, "{answer}");
            case.check(&answer);
            rows += case.rows;
        }
    };
    let (mut times, mut rows) = (Vec::new(), 0);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(work)).collect();
        for client in clients {
            let (of_client, rows_of_client) = client.join().expect("right answers");
            times.extend(of_client);
            rows += rows_of_client;
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    times.sort_unstable();
    let percentile = |percent: usize| times[(times.len() - 1) * percent / 100];
    #[allow(clippy::cast_precision_loss, reason = "for people")]
    let (requests_per_second, rows_per_second) = (times.len() as f64 / seconds, rows as f64 / seconds);
    println!(
        "{CLIENTS} clients that verify: {requests_per_second:.0} requests/s, {rows_per_second:.0} rows/s; \
         latency p50 {:.2?}, p90 {:.2?}, p99 {:.2?}, max {:.2?}",
        percentile(50),
        percentile(90),
        percentile(99),
        percentile(100)
    );

    assert_eq!(times.len(), REQUESTS);
    assert_eq!(server.answered(200), REQUESTS);
    assert_eq!(server.metric("forward_requests_total"), REQUESTS);
    assert_eq!(server.metric("forward_seconds_count"), REQUESTS);
    assert_eq!(server.metric("forward_rows_total"), rows);
    assert_eq!(server.metric("forward_rejected_total"), 0);
    assert_eq!(server.metric("forward_in_flight"), 0);
    assert_eq!(server.metric("forward_executors"), EXECUTORS);
    assert_eq!(server.metric("forward_executors_idle"), EXECUTORS);
    // The first of every hundred runs of each executor.
    let checked = server.metric("forward_self_checks_total");
    assert!((REQUESTS / 100..REQUESTS / 100 + EXECUTORS).contains(&checked), "{checked}");
    assert_eq!(server.metric("forward_self_check_mismatches_total"), 0);
}

#[test]
fn what_is_no_request_is_refused_with_what_was_expected() {
    let _alone = alone();
    let directory = TempDir::new().expect("a directory");
    let model = model(&directory);
    let server = Server::of(&model, &["--executors", "1", "--max-rows", "16"]);
    let rows = |rows: usize, width: usize| json!({ "rows": vec![vec![1; width]; rows] }).to_string();
    let with = |element: &str| rows(2, INPUTS).replacen('1', element, 1);
    let limit = MAX_ROWS * INPUTS * 32 + 1024;
    let cases = [
        (String::new(), 400, "expected"),
        ("{\"rows\":[[1,2".to_owned(), 400, "1 to 16 rows of 192 numbers"),
        ("[[1]]".to_owned(), 400, "1 to 16 rows of 192 numbers"),
        ("{}".to_owned(), 400, "missing field `rows`"),
        (rows(1, INPUTS).replace("rows", "row"), 400, "unknown field `row`"),
        (with("\"1\""), 400, "expected f32"),
        (with("null"), 400, "expected f32"),
        (with("NaN"), 400, "1 to 16 rows of 192 numbers"),
        (with("1e999"), 400, "number out of range"),
        (with("1e39"), 400, "number out of range"), // for an f32
        ("[".repeat(10_000), 400, "1 to 16 rows of 192 numbers"),
        (rows(0, 0), 422, "got 0 rows; expected {\"rows\": [[...], ...]} with 1 to 16 rows"),
        (rows(17, INPUTS), 422, "got 17 rows; expected"),
        (rows(1, INPUTS - 1), 422, "row 0 has 191 numbers; expected"),
        (rows(1, INPUTS + 1), 422, "row 0 has 193 numbers; expected"),
        (rows(1, 0), 422, "row 0 has 0 numbers; expected"),
        (rows(1, INPUTS).replace('1', "3e38"), 422, "the result is not finite"),
        (" ".repeat(limit + 1), 413, "expected at most 99328 bytes"),
    ];
    let right = Case::of(&model, 3, 5);
    let client = client();
    for (body, expected, words) in &cases {
        let (status, _, answer) = server.post(&client, body).expect("an answer");
        let shown = &body[..body.len().min(60)];
        assert_eq!(status, *expected, "{shown}: {answer}");
        let error: Value = serde_json::from_str(&answer).expect(&answer);
        assert!(error["error"].as_str().expect("words").contains(words), "{shown}: {error}");
        let (status, _, answer) = server.post(&client, &right.body).expect("an answer");
        assert_eq!(status, 200, "after {shown}: {answer}");
        right.check(&answer);
    }
    for (path, expected) in [("/v1/forward", 405), ("/nowhere", 404)] {
        let (status, answer) = server.get(path);
        assert_eq!(status, expected);
        assert!(answer.contains("expected POST /v1/forward"), "{answer}");
    }
    for status in [400, 413, 422] {
        assert_eq!(server.answered(status), cases.iter().filter(|case| case.1 == status).count());
    }
    assert_eq!(server.metric("forward_requests_total"), 2 * cases.len());
    assert_eq!(server.metric("forward_rows_total"), right.rows * cases.len());
    assert_eq!(server.metric("forward_rejected_total"), 0);
}

#[test]
fn too_many_requests_at_once_are_turned_away_and_the_others_answered() {
    const AT_ONCE: usize = 16;
    let _alone = alone();
    let directory = TempDir::new().expect("a directory");
    let model = model(&directory);
    // Long enough that requests meet.
    let case = Case::of(&model, 256, 6);
    let server = Server::of(&model, &["--executors", "1", "--max-rows", "256", "--max-waiting", "1"]);
    let (answered, rejected) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let mut rounds = 0;
    while rejected.load(Ordering::Relaxed) == 0 {
        assert!(rounds < 50, "never too many");
        rounds += 1;
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    let client = client();
                    for _ in 0..3 {
                        let (status, retry, answer) = server.post(&client, &case.body).expect("an answer");
                        if status == 200 {
                            case.check(&answer);
                            answered.fetch_add(1, Ordering::Relaxed);
                        } else {
                            assert_eq!((status, retry.as_deref()), (503, Some("1")), "{answer}");
                            assert!(answer.contains("too many requests"), "{answer}");
                            rejected.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
    }
    let (answered, rejected) = (answered.into_inner(), rejected.into_inner());
    println!("{AT_ONCE} at once, one executor: {answered} answered, {rejected} turned away");
    assert!(answered >= 1);
    assert_eq!(answered + rejected, rounds * AT_ONCE * 3);
    assert_eq!((server.answered(200), server.answered(503)), (answered, rejected));
    assert_eq!(server.metric("forward_rejected_total"), rejected);
    assert_eq!(server.metric("forward_in_flight"), 0);
    // It is as good as new.
    let (status, _, answer) = server.post(&client(), &case.body).expect("an answer");
    assert_eq!(status, 200);
    case.check(&answer);
}

/// A request whose head and half of its body were sent.
struct HalfSent<'a> {
    stream: TcpStream,
    rest: &'a str,
}

impl<'a> HalfSent<'a> {
    fn new(server: &Server, body: &'a str) -> Self {
        let mut stream = TcpStream::connect(server.address).expect("a connection");
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        let (half, rest) = body.split_at(body.len() / 2);
        write!(
            stream,
            "POST /v1/forward HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n{half}",
            body.len()
        )
        .expect("sent");
        Self { stream, rest }
    }

    /// Sends the rest: the head of the answer, and its body.
    fn finish(mut self) -> (String, String) {
        self.stream.write_all(self.rest.as_bytes()).expect("sent");
        let mut answer = String::new();
        self.stream.read_to_string(&mut answer).expect("an answer, and the connection's end");
        let (head, body) = answer.split_once("\r\n\r\n").expect(&answer);
        (head.to_owned(), body.to_owned())
    }
}

#[test]
#[cfg(unix)]
fn sigterm_under_load_finishes_what_was_begun() {
    let _alone = alone();
    let directory = TempDir::new().expect("a directory");
    let model = model(&directory);
    let case = Case::of(&model, 8, 7);
    let mut server = Server::of(&model, &["--executors", "2", "--max-rows", "16"]);
    let half_sent: Vec<_> = (0..4).map(|_| HalfSent::new(&server, &case.body)).collect();
    // Whoever is in flight, these are.
    let start = Instant::now();
    while server.metric("forward_in_flight") < half_sent.len() {
        assert!(start.elapsed() < LIMIT, "not in flight");
        thread::sleep(Duration::from_millis(5));
    }

    let (answered, stopping) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let client = client();
                loop {
                    match server.post(&client, &case.body) {
                        // Whatever is answered is answered in full.
                        Ok((status, _, answer)) => {
                            assert_eq!(status, 200, "{answer}");
                            case.check(&answer);
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        // It no longer accepts, or closed a connection before it read a request from it.
                        Err(error) => {
                            assert!(stopping.load(Ordering::Relaxed), "{error}");
                            return;
                        }
                    }
                }
            });
        }
        while answered.load(Ordering::Relaxed) < 200 {
            assert!(start.elapsed() < LIMIT, "no answers");
            thread::sleep(Duration::from_millis(5));
        }
        stopping.store(true, Ordering::Relaxed);
        server.terminate();
    });
    while TcpStream::connect(server.address).is_ok() {
        assert!(start.elapsed() < LIMIT, "it still accepts");
        thread::sleep(Duration::from_millis(5));
    }
    for request in half_sent {
        let (head, body) = request.finish();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        case.check(&body);
    }
    assert_eq!(server.wait_for().code(), Some(0));
}

#[test]
fn a_quantised_file_is_served_as_it_is() {
    let _alone = alone();
    let directory = TempDir::new().expect("a directory");
    let quantised = directory.path().join("int4.safetensors");
    let file = SafetensorsFile::read(model(&directory)).expect("a file");
    file.quantize(&QuantizeOptions::new(ElementType::I4), &quantised, |_, _| ()).expect("a file");
    let case = Case::of(&quantised, 5, 8);
    let (status, _, answer) = Server::of(&quantised, &[]).post(&client(), &case.body).expect("an answer");
    assert_eq!(status, 200, "{answer}");
    case.check(&answer);
}

#[test]
fn without_a_file_the_weights_are_random() {
    let _alone = alone();
    let server = Server::start(&[]);
    let body = json!({ "rows": [vec![0.5; 768], vec![-0.5; 768]] }).to_string();
    let (status, _, answer) = server.post(&client(), &body).expect("an answer");
    assert_eq!(status, 200, "{answer}");
    let answer: Value = serde_json::from_str(&answer).expect(&answer);
    let widths = answer["rows"].as_array().expect("rows").iter().map(|row| row.as_array().map(Vec::len));
    assert_eq!(widths.collect::<Vec<_>>(), [Some(3072); 2]);
}

#[test]
fn what_cannot_be_served_is_an_error_at_the_start() {
    let directory = TempDir::new().expect("a directory");
    let model = model(&directory);
    let model = model.to_str().expect("UTF-8");
    for (arguments, words) in [
        (&["--model", "/nowhere.safetensors"][..], "/nowhere.safetensors"),
        (&["--model", model, "--layer", "mlp.down"], "no tensor named `mlp.down.weight`"),
        (&["--executors", "0"], "error: "),
        (&["--threads-per-run", "0"], "expected at least 1 thread"),
        (&["--max-rows", "0"], "expected at least 1"),
        (&["--listen", "192.0.2.1:80"], "error: "),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_ane-matmul-example-service"))
            .args(["--listen", "127.0.0.1:0"].iter().filter(|_| arguments[0] != "--listen"))
            .args(arguments)
            .output()
            .expect("the service starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && output.stdout.is_empty(), "{arguments:?}");
        assert!(stderr.contains(words), "{arguments:?}: {stderr}");
    }
}
