//! What the server tells of its work: statistics, metrics, probes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use sight_protocol::{Counter, ErrorCode, ModelRef, ModelTask, Request, Response};
use tempfile::TempDir;

mod support;
use support::{Server, config, encoder, model};

/// A directory with a model in it.
fn prepare() -> (TempDir, ModelRef) {
    let directory = tempfile::tempdir().unwrap();
    let model_directory = directory.path().join("encoder");
    encoder::write(&model_directory);
    (directory, model(&model_directory))
}

fn embed(model: &ModelRef, texts: &[&str]) -> Request {
    Request::Embed {
        model: model.clone(),
        texts: texts.iter().map(|text| (*text).into()).collect(),
        prompt_name: None,
    }
}

/// More than is computed within a test.
fn endless(model: &ModelRef) -> Request {
    let texts: Vec<String> = (0..200_000)
        .map(|number| "red shoe ".repeat(1 + number % 20))
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    embed(model, &texts)
}

#[test]
fn requests_are_counted_by_how_they_end() {
    let (directory, model) = prepare();
    let mut config = config();
    config.embed_cache_bytes = 1 << 20;
    config.max_queued_requests = 1;
    let server = Server::start(directory.path(), &config);
    let mut client = server.connect();
    client.ask(&embed(&model, &["red", "blue", "green"]), &[]);
    client.ask(&embed(&model, &["red", "lamp"]), &[]);
    let mut short = model.clone();
    short.limits.max_text_bytes = 1;
    let error = client.ask_error(&embed(&short, &["red"]), &[]);
    assert_eq!(error.code, ErrorCode::TextTooLarge);
    let counted = server.statistics();
    assert_eq!(
        (counted.model.as_str(), counted.task),
        ("test", ModelTask::Embed)
    );
    let counts = [
        (Counter::Requests, 3),
        (Counter::Failed, 1),
        (Counter::Cancelled, 0),
        (Counter::Items, 5),
        (Counter::CacheHits, 1),
        (Counter::Batches, 2),
        (Counter::BatchItems, 4),
        (Counter::LargestBatch, 3),
        (Counter::Loads, 1),
    ];
    for (counter, count) in counts {
        assert_eq!(counted[counter], count, "{counter:?}");
    }
    for time in [
        Counter::QueueTime,
        Counter::PreprocessTime,
        Counter::ComputeTime,
        Counter::LoadTime,
    ] {
        assert!(counted[time] > 0, "{time:?}");
        // Microseconds, and not many of them.
        assert!(counted[time] < 60_000_000, "{time:?}");
    }

    let mut gone = server.connect();
    gone.send(&endless(&model), &[]);
    server.wait_for_status(|status| status.requests == 4 && status.queued_requests == 0);
    // The place of waiting requests is free again, but the model is not.
    drop(gone);
    let until = Instant::now() + Duration::from_secs(20);
    while server.statistics()[Counter::Cancelled] == 0 {
        assert!(Instant::now() < until, "the cancel is not counted");
    }
    assert_eq!(server.ask(&Request::ResetStatistics, &[]).0, Response::Done);
    let Response::Statistics(reset) = server.ask(&Request::Statistics, &[]).0 else {
        panic!("no statistics");
    };
    assert!(reset.models.is_empty());
}

#[test]
fn a_full_queue_rejects_and_counts_it() {
    let (directory, model) = prepare();
    let mut config = config();
    config.max_queued_requests = 1;
    // One text at a time, so that requests wait.
    config.max_batch_tokens = 1;
    let server = Server::start(directory.path(), &config);
    let answers: Vec<Option<ErrorCode>> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..24)
            .map(|number| {
                let (server, model) = (&server, &model);
                scope.spawn(move || {
                    let text = "red shoe ".repeat(number + 1);
                    let texts: Vec<&str> = vec![&text; 50];
                    match server.ask(&embed(model, &texts), &[]).0 {
                        Response::Error(error) => Some(error.code),
                        _ => None,
                    }
                })
            })
            .collect();
        let answers = clients.into_iter().map(|client| client.join().unwrap());
        answers.collect()
    });
    let rejected = answers.iter().flatten().count();
    assert!(rejected > 0 && rejected < answers.len());
    let overloaded = Some(ErrorCode::Overloaded);
    assert!(
        answers
            .iter()
            .all(|code| code.is_none() || *code == overloaded)
    );
    let counted = server.statistics();
    assert_eq!(counted[Counter::Rejected], rejected as u64);
    assert_eq!(counted[Counter::Requests], 24);
    assert_eq!(counted[Counter::Failed], 0);
}

#[test]
fn statistics_go_on_after_an_orderly_end() {
    let (directory, model) = prepare();
    let mut server = Server::start(directory.path(), &config());
    server.ask(&embed(&model, &["red"]), &[]);
    server.signal("TERM");
    assert_eq!(server.exit_within(Duration::from_secs(20)).code(), Some(0));
    let server = Server::start(directory.path(), &config());
    server.ask(&embed(&model, &["red"]), &[]);
    assert_eq!(server.statistics()[Counter::Requests], 2);
}

fn http(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn metrics_are_served_on_a_loopback_address() {
    let (directory, model) = prepare();
    let mut config = config();
    let port = free_port();
    config.metrics_address = Some(format!("127.0.0.1:{port}"));
    let server = Server::start(directory.path(), &config);
    server.wait_for_log("INFO: metrics at");
    server.ask(&embed(&model, &["red"]), &[]);
    let answer = http(port, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let requests = "pg_sight_requests_total{model=\"test\",task=\"embed\"} 1\n";
    assert!(answer.contains(requests), "{answer}");
    // A client that says nothing, or too much, is in nobody's way.
    let _silent: Vec<TcpStream> = (0..4)
        .map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap())
        .collect();
    let mut chatty = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let _ = chatty.write_all(&vec![b'x'; 1 << 20]);
    assert!(http(port, "GET /other HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
}

#[test]
fn metrics_that_cannot_be_served_do_not_stop_the_server() {
    let (directory, _) = prepare();
    for address in ["192.0.2.1:9000", "0.0.0.0:9000", "nonsense"] {
        let mut config = config();
        config.metrics_address = Some(address.into());
        let server = Server::start(directory.path(), &config);
        let line = server.wait_for_log("WARNING: no metrics");
        assert!(line.contains(address), "{line}");
        server.status();
    }
}

#[test]
fn a_probe_computes_with_the_loaded_models() {
    let (directory, model) = prepare();
    let server = Server::start(directory.path(), &config());
    assert_eq!(server.ask(&Request::Probe, &[]).0, Response::Done);
    server.ask(
        &Request::Load {
            model: model.clone(),
        },
        &[],
    );
    let captioner =
        support::model(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/captioner"));
    server.ask(&Request::Load { model: captioner }, &[]);
    assert_eq!(server.loaded().len(), 2);
    assert_eq!(server.ask(&Request::Probe, &[]).0, Response::Done);
    // It is neither a request nor counted as work.
    assert_eq!(server.status().requests, 2);
    // A busy server answers as well.
    let mut busy = server.connect();
    busy.send(&endless(&model), &[]);
    server.wait_for_status(|status| status.requests == 3 && status.queued_requests == 0);
    let begun = Instant::now();
    assert_eq!(server.ask(&Request::Probe, &[]).0, Response::Done);
    assert!(begun.elapsed() < Duration::from_secs(10));
}
