//! Downloads as requests: their answer, their progress and their end.

use std::path::Path;
use std::time::{Duration, Instant};

use fake_hub::{FakeHub, Fault};
use sight_protocol::{
    Architecture, ErrorCode, ModelTask, PullPhase, PullProgress, PullRequest, PulledModel, Request,
    Response,
};

mod support;
use support::{PATIENCE, Server, config, model};

const REPOSITORY: &str = "some-one/tiny-bert";
const SECOND: Duration = Duration::from_secs(1);

fn tiny_bert() -> &'static Path {
    Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../models/tests/fixtures/tiny-bert"
    ))
}

fn request(hub: &FakeHub, home: &Path) -> Request {
    Request::Pull(PullRequest {
        repository: REPOSITORY.into(),
        revision: "main".into(),
        endpoint: Some(hub.endpoint()),
        home: Some(home.to_str().unwrap().into()),
        requester: 4711,
    })
}

fn pulls(server: &Server) -> Vec<PullProgress> {
    match server.ask(&Request::Pulls, &[]).0 {
        Response::Pulls(pulls) => pulls,
        other => panic!("{other:?}"),
    }
}

/// Waits until the only pull is one for which `condition` holds.
fn wait_for_pull(server: &Server, condition: impl Fn(&PullProgress) -> bool) -> PullProgress {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let pulls = pulls(server);
        assert!(pulls.len() <= 1);
        match pulls.into_iter().next() {
            Some(pull) if condition(&pull) => return pull,
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn wait_until_no_pull_runs(server: &Server, time: Duration) {
    let deadline = Instant::now() + time;
    while !pulls(server).is_empty() {
        assert!(Instant::now() < deadline, "the download goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn embed(server: &Server, directory: &Path) -> Response {
    let request = Request::Embed {
        model: model(directory),
        texts: vec!["a text".into()],
        prompt_name: None,
    };
    server.ask(&request, &[]).0
}

#[test]
fn a_pulled_model_is_described_and_can_be_used() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &config());
    let hub = FakeHub::start();
    let commit = hub.publish(REPOSITORY, tiny_bert());
    let home = directory.path().join("home");
    let pulled = match server.ask(&request(&hub, &home), &[]).0 {
        Response::Pulled(pulled) => pulled,
        other => panic!("{other:?}"),
    };
    let PulledModel {
        directory: found,
        info,
        ..
    } = &pulled;
    assert_eq!(pulled.commit, commit);
    assert_eq!(
        (info.task, info.architecture),
        (ModelTask::Embed, Architecture::Bert)
    );
    assert!(Path::new(found).starts_with(&home));
    assert!(matches!(
        embed(&server, Path::new(found)),
        Response::Embeddings(_)
    ));
    assert_eq!(pulls(&server), []);
}

#[test]
fn a_pull_shows_its_progress_hinders_nobody_and_ends_with_its_client() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &config());
    let hub = FakeHub::start();
    hub.publish(REPOSITORY, tiny_bert());
    hub.set_fault(Fault::Slow(4_000));
    let home = directory.path().join("home");
    let mut client = server.connect();
    client.send(&request(&hub, &home), &[]);
    let begun = wait_for_pull(&server, |pull| pull.bytes_done > 0 && pull.file.is_some());
    assert_eq!(begun.requester, 4711);
    assert_eq!(
        (begun.repository.as_str(), begun.revision.as_str()),
        (REPOSITORY, "main")
    );
    assert_eq!(begun.phase, PullPhase::Downloading);
    assert!(begun.files_total > begun.files_done && begun.bytes_total > begun.bytes_done);
    let later = wait_for_pull(&server, |pull| pull.bytes_done > begun.bytes_done);
    assert_eq!(later.bytes_total, begun.bytes_total);
    assert!(matches!(
        embed(&server, tiny_bert()),
        Response::Embeddings(_)
    ));
    drop(client);
    wait_until_no_pull_runs(&server, SECOND);
    // The download itself ends, too, a moment later: the hub is asked for no more.
    std::thread::sleep(SECOND / 5);
    let asked = hub.requests().len();
    hub.set_fault(Fault::None);
    std::thread::sleep(SECOND / 2);
    assert_eq!(hub.requests().len(), asked);
}

#[test]
fn a_server_that_ends_does_not_wait_for_a_pull() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::start(directory.path(), &config());
    let hub = FakeHub::start();
    hub.publish(REPOSITORY, tiny_bert());
    hub.set_fault(Fault::Slow(4_000));
    let mut client = server.connect();
    client.send(&request(&hub, &directory.path().join("home")), &[]);
    wait_for_pull(&server, |pull| pull.bytes_done > 0);
    server.signal("TERM");
    assert_eq!(client.receive_error().code, ErrorCode::ShuttingDown);
    assert_eq!(server.exit_within(2 * SECOND).code(), Some(0));
}

#[test]
fn errors_have_their_codes() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &config());
    let hub = FakeHub::start();
    let home = directory.path().join("home");
    let ask = || server.connect().ask_error(&request(&hub, &home), &[]);
    let missing = ask();
    assert_eq!(missing.code, ErrorCode::DownloadFailed);
    assert!(missing.detail.unwrap().contains("404") && missing.hint.is_some());

    // What is not a model that can be used is downloaded, and then refused.
    let source = directory.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("config.json"), "{\"model_type\": \"gpt2\"}").unwrap();
    std::fs::write(source.join("model.safetensors"), "").unwrap();
    hub.publish(REPOSITORY, &source);
    assert_eq!(ask().code, ErrorCode::NotSupported);

    let mut invalid = request(&hub, &home);
    if let Request::Pull(pull) = &mut invalid {
        pull.repository = "../etc".into();
    }
    let error = server.connect().ask_error(&invalid, &[]);
    assert_eq!(error.code, ErrorCode::InvalidOption);
    assert_eq!(pulls(&server), []);
}
