//! Metrics over HTTP in the text format of Prometheus,
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>. Only on a loopback
//! address: everyone who can reach it can read it.

use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sight_protocol::{Counter, ModelStatistics, ServerStatus, Statistics};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::log;
use crate::service::Service;
use crate::status;

/// The longest request, in bytes.
const MAX_REQUEST_BYTES: usize = 8 * 1024;
/// How long a client may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Clients at a time; further ones wait.
const CLIENTS: usize = 8;
/// Pause after a connection could not be accepted (too many open files).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves metrics at an address for ever. One where that cannot be is logged: models
/// do not depend on it.
pub async fn serve(address: String, service: Arc<Service>) {
    let listener = match listen(&address).await {
        Ok(listener) => listener,
        Err(error) => {
            log::warning(format_args!("no metrics at \"{address}\": {error}"));
            return;
        }
    };
    log::info(format_args!("metrics at http://{address}/metrics"));
    let clients = Arc::new(Semaphore::new(CLIENTS));
    while let Ok(permit) = Arc::clone(&clients).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = Arc::clone(&service);
                tokio::spawn(async move {
                    let _permit = permit;
                    // A client that is slow or gone harms only itself.
                    let _ = tokio::time::timeout(TIMEOUT, answer(stream, &service)).await;
                });
            }
            Err(error) => {
                log::warning(format_args!(
                    "could not accept a client of metrics: {error}"
                ));
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn listen(address: &str) -> io::Result<TcpListener> {
    let parsed: SocketAddr = address.parse().map_err(io::Error::other)?;
    if !parsed.ip().is_loopback() {
        return Err(io::Error::other("it is no loopback address"));
    }
    TcpListener::bind(parsed).await
}

async fn answer(mut stream: TcpStream, service: &Service) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if request.len() > MAX_REQUEST_BYTES || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let line = request.split(|byte| *byte == b'\r').next();
    let response = respond(line.unwrap_or_default(), || {
        text(&status::of(service), &service.statistics.snapshot())
    });
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}

/// The response to a request line.
fn respond(line: &[u8], metrics: impl FnOnce() -> String) -> String {
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next());
    let path = target.and_then(|target| target.split('?').next());
    let (status, body) = match (method, path) {
        ("GET" | "HEAD", Some("/metrics")) => ("200 OK", metrics()),
        ("GET" | "HEAD", _) => ("404 Not Found", "There is only /metrics.\n".into()),
        _ => ("405 Method Not Allowed", "There is only GET.\n".into()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nAllow: GET, HEAD\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if method == "HEAD" { head } else { head + &body }
}

/// All metrics.
fn text(status: &ServerStatus, statistics: &Statistics) -> String {
    let mut text = String::new();
    let models = status.loaded_models.iter();
    let gauges = [
        (
            "resident_memory_bytes",
            "Resident memory of the model server.",
            status.memory_bytes as f64,
        ),
        (
            "uptime_seconds",
            "Time since the model server started.",
            status.uptime_ms as f64 / 1e3,
        ),
        (
            "queued_requests",
            "Requests that wait for the device.",
            status.queued_requests as f64,
        ),
        (
            "loaded_models",
            "Models in memory.",
            status.loaded_models.len() as f64,
        ),
        (
            "model_memory_bytes",
            "Weights of the models in memory.",
            models.map(|model| model.memory_bytes).sum::<u64>() as f64,
        ),
        (
            "cached_embeddings",
            "Embeddings in the cache.",
            status.cached_embeddings as f64,
        ),
        (
            "cache_bytes",
            "Memory of the cache of embeddings.",
            status.cache_bytes as f64,
        ),
    ];
    let device = [
        (
            "device_memory_used_bytes",
            "Memory of the GPU that all programs use.",
            status.device_memory_used_bytes,
        ),
        (
            "device_memory_bytes",
            "Memory of the GPU.",
            status.device_memory_bytes,
        ),
    ];
    let device = device.into_iter();
    let device = device.filter_map(|(name, help, bytes)| Some((name, help, bytes? as f64)));
    for (name, help, value) in gauges.into_iter().chain(device) {
        head(&mut text, name, help, "gauge");
        // Writing to a string cannot fail.
        let _ = writeln!(text, "pg_sight_{name} {value}");
    }
    for counter in Counter::ALL {
        write_counter(&mut text, counter, &statistics.models);
    }
    text
}

fn head(text: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(text, "# HELP pg_sight_{name} {help}");
    let _ = writeln!(text, "# TYPE pg_sight_{name} {kind}");
}

fn write_counter(text: &mut String, counter: Counter, models: &[ModelStatistics]) {
    let name = counter.as_str();
    let (name, kind) = match counter {
        Counter::LargestBatch => (name.to_owned(), "gauge"),
        _ if counter.is_time() => {
            let name = name.trim_end_matches("_time");
            (format!("{name}_seconds_total"), "counter")
        }
        _ => (format!("{name}_total"), "counter"),
    };
    head(text, &name, help(counter), kind);
    for model in models {
        let label = label(&model.model);
        let task = model.task.as_str();
        let _ = write!(
            text,
            "pg_sight_{name}{{model=\"{label}\",task=\"{task}\"}} "
        );
        let _ = if counter.is_time() {
            writeln!(text, "{}", model[counter] as f64 / 1e6)
        } else {
            writeln!(text, "{}", model[counter])
        };
    }
}

fn help(counter: Counter) -> &'static str {
    match counter {
        Counter::Requests => "Requests: answered, failed, cancelled and rejected.",
        Counter::Failed => "Requests that failed.",
        Counter::Cancelled => "Requests whose clients went away.",
        Counter::Rejected => "Requests that were refused as overloaded.",
        Counter::Items => "Texts or pictures of answered requests.",
        Counter::CacheHits => "Texts whose vectors were in the cache.",
        Counter::Batches => "Batches that were computed.",
        Counter::BatchItems => "Texts or pictures in the batches.",
        Counter::LargestBatch => "Most texts or pictures in one batch.",
        Counter::OomSplits => "Batches halved for lack of device memory.",
        Counter::GeneratedTokens => "Tokens of descriptions, while they are generated.",
        Counter::QueueTime => "Time that requests waited for their first batch.",
        Counter::PreprocessTime => "Time that threads tokenized, decoded and resized.",
        Counter::ComputeTime => "Time that the model was at work.",
        Counter::Loads => "Times the model was loaded.",
        Counter::LoadTime => "Time that loading took.",
    }
}

/// The value of a label, between its quotes.
fn label(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use sight_protocol::{
        Counter, LoadedModel, ModelStatistics, ModelTask, ServerStatus, Statistics,
    };

    use super::{listen, respond, text};

    fn status() -> ServerStatus {
        let model = |memory_bytes| LoadedModel {
            directory: "/secret".into(),
            memory_bytes,
            unused_ms: 1,
        };
        ServerStatus {
            pid: 1,
            version: "1".into(),
            device: "cpu".into(),
            dtype: "float32".into(),
            threads: 1,
            memory_bytes: 1000,
            device_memory_used_bytes: None,
            device_memory_bytes: None,
            uptime_ms: 1500,
            requests: 3,
            failed_requests: 0,
            queued_requests: 2,
            cached_embeddings: 4,
            cache_bytes: 5,
            loaded_models: vec![model(10), model(20)],
        }
    }

    #[test]
    fn every_line_is_of_the_format() {
        let counts = std::array::from_fn(|number| number as u64 + 1);
        let statistics = Statistics {
            since_ms: 0,
            models: vec![ModelStatistics {
                model: "a\"b\\c\nd".into(),
                task: ModelTask::Embed,
                counts,
            }],
        };
        let text = text(&status(), &statistics);
        for line in [
            "pg_sight_model_memory_bytes 30",
            "pg_sight_uptime_seconds 1.5",
            "# TYPE pg_sight_requests_total counter",
            "pg_sight_requests_total{model=\"a\\\"b\\\\c\\nd\",task=\"embed\"} 1",
            "pg_sight_generated_tokens_total{model=\"a\\\"b\\\\c\\nd\",task=\"embed\"} 11",
            "pg_sight_queue_seconds_total{model=\"a\\\"b\\\\c\\nd\",task=\"embed\"} 0.000012",
            "# TYPE pg_sight_largest_batch gauge",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("/secret"));
        let types = text.lines().filter(|line| line.starts_with("# TYPE "));
        assert_eq!(types.count(), 7 + Counter::ALL.len());
    }

    #[test]
    fn memory_of_a_gpu_is_told_where_there_is_one() {
        let statistics = Statistics {
            since_ms: 0,
            models: Vec::new(),
        };
        assert!(!text(&status(), &statistics).contains("device_memory"));
        let on_gpu = ServerStatus {
            device_memory_used_bytes: Some(7),
            device_memory_bytes: Some(9),
            ..status()
        };
        let text = text(&on_gpu, &statistics);
        for line in [
            "pg_sight_device_memory_used_bytes 7",
            "pg_sight_device_memory_bytes 9",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn only_metrics_are_served() {
        let to = |line: &str| respond(line.as_bytes(), || "m 1\n".into());
        assert!(to("GET /metrics HTTP/1.1").starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(to("GET /metrics?x=1 HTTP/1.1").ends_with("\r\n\r\nm 1\n"));
        assert!(to("HEAD /metrics HTTP/1.1").ends_with("\r\n\r\n"));
        assert!(to("GET / HTTP/1.1").starts_with("HTTP/1.1 404 "));
        for other in ["POST /metrics HTTP/1.1", "", "\u{fffd}", "GET"] {
            assert!(!to(other).starts_with("HTTP/1.1 200"), "{other}");
        }
    }

    #[tokio::test]
    async fn it_listens_on_loopback_addresses_only() {
        assert!(listen("127.0.0.1:0").await.is_ok());
        for address in ["0.0.0.0:0", "192.0.2.1:80", "localhost:80", "127.0.0.1", ""] {
            assert!(listen(address).await.is_err(), "{address}");
        }
    }
}
