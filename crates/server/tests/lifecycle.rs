//! The process: how it starts, whom it serves, how it ends. No model needed.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use sight_protocol::{
    ErrorCode, GenerationOptions, PROTOCOL_VERSION, Request, Response, ServerConfig, encode,
};

mod support;
use support::{PATIENCE, Server, config, model};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn status_tells_of_the_process() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &config());
    let status = server.status();
    assert_eq!(status.pid, server.pid());
    assert_eq!(
        (status.device.as_str(), status.dtype.as_str()),
        ("cpu", "float32")
    );
    assert_eq!(status.threads, 2);
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    assert!(status.memory_bytes > 1 << 20);
    let on_device = (status.device_memory_used_bytes, status.device_memory_bytes);
    assert_eq!(on_device, (None, None));
    // Asking for the status is not a request that counts.
    assert_eq!((status.requests, status.failed_requests), (0, 0));
    assert!(status.loaded_models.is_empty());
}

#[test]
fn the_log_says_what_computes() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::spawn(directory.path(), &config());
    server.wait_for_log("INFO: computing on cpu in float32");
    // A build for GPUs says where there is none, and computes all the same.
    let config = ServerConfig {
        device: "auto".into(),
        ..config()
    };
    let directory = tempfile::tempdir().unwrap();
    let server = Server::spawn(directory.path(), &config);
    if cfg!(feature = "cuda") && !Path::new("/dev/nvidia0").exists() {
        server.wait_for_log(
            "WARNING: computing on the CPU, although this server was built for GPUs: ",
        );
    }
    server.wait_for_log("INFO: ready");
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let config = ServerConfig {
        device: "cuda:99".into(),
        ..config()
    };
    let server = Server::spawn(directory.path(), &config);
    server.wait_for_log("ERROR: could not open device \"cuda:99\": ");
}

#[test]
fn its_files_are_for_its_user_alone() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &config());
    for (name, mode) in [("server.sock", 0o600), ("server.lock", 0o600)] {
        let metadata = std::fs::metadata(directory.path().join(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{name}");
    }
    let lock = std::fs::read_to_string(directory.path().join("server.lock")).unwrap();
    assert_eq!(lock.trim(), server.pid().to_string());
    let proc_file =
        |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", server.pid())).unwrap();
    assert_eq!(proc_file("oom_score_adj").trim(), "500");
    // Fields 5 and 6 of stat: process group and session are its own.
    let stat = proc_file("stat");
    let fields: Vec<&str> = stat.split_whitespace().collect();
    assert_eq!(fields[4], server.pid().to_string());
    assert_eq!(fields[5], server.pid().to_string());
}

#[test]
fn a_connection_serves_many_requests() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &config());
    let mut client = server.connect();
    for _ in 0..3 {
        assert!(matches!(
            client.ask(&Request::Status, &[]).0,
            Response::Status(_)
        ));
    }
}

#[test]
fn there_may_be_as_many_connections_as_sessions() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &config());
    let mut clients: Vec<_> = (0..100).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert!(matches!(
            client.ask(&Request::Status, &[]).0,
            Response::Status(_)
        ));
    }
}

#[test]
fn the_documented_bytes_ask_for_the_status() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &config());
    let mut client = server.connect();
    let bytes = [7, 0, 0, 0, 3, 0, 1, 0, 0, 0, 0];
    client.stream.write_all(&bytes).unwrap();
    let (answer, body) = client.receive().unwrap();
    assert!(matches!(answer, Response::Status(_)));
    assert!(body.is_empty());
}

#[test]
fn garbage_is_answered_and_harms_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &config());
    let mut bystander = server.connect();
    bystander.ask(&Request::Status, &[]);

    let mut header_too_long = vec![6, 0, 0, 0];
    header_too_long.extend(PROTOCOL_VERSION.to_le_bytes());
    header_too_long.extend(1000u32.to_le_bytes());
    let not_a_request = encode(&200u8, &[]).unwrap().to_vec();
    let other_version = vec![6, 0, 0, 0, 77, 0, 0, 0, 0, 0];
    for garbage in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 64],
        vec![0; 64],
        header_too_long,
        not_a_request,
        other_version,
    ] {
        let mut client = server.connect();
        client.stream.write_all(&garbage).unwrap();
        let error = client.receive_error();
        assert_eq!(error.code, ErrorCode::Protocol, "{garbage:?}");
        assert!(client.receive().is_none(), "the connection is closed");
    }
    assert!(matches!(
        bystander.ask(&Request::Status, &[]).0,
        Response::Status(_)
    ));
    assert_eq!(server.status().failed_requests, 6);
}

#[test]
fn a_request_must_wait_for_the_answer_before() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &config());
    let mut client = server.connect();
    let twice = encode(&Request::Status, &[]).unwrap().repeat(2);
    client.stream.write_all(&twice).unwrap();
    assert_eq!(client.receive_error().code, ErrorCode::Protocol);
    assert!(client.receive().is_none());
}

#[test]
fn lengths_that_do_not_fit_the_body_are_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &config());
    let request = Request::Describe {
        model: model(directory.path()),
        image_bytes: vec![4, u32::MAX],
        prompts: Vec::new(),
        options: GenerationOptions::default(),
    };
    let mut client = server.connect();
    client.send(&request, &[b"1234"]);
    assert_eq!(client.receive_error().code, ErrorCode::Protocol);
}

#[test]
fn a_missing_model_is_an_error_that_names_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &config());
    let missing = model(Path::new("/nowhere/at/all"));
    let mut client = server.connect();
    let requests = [
        Request::Load {
            model: missing.clone(),
        },
        Request::Inspect {
            model: missing.clone(),
        },
        Request::Embed {
            model: missing.clone(),
            texts: vec!["text".into()],
            prompt_name: None,
        },
        Request::Describe {
            model: missing.clone(),
            image_bytes: Vec::new(),
            prompts: Vec::new(),
            options: GenerationOptions::default(),
        },
    ];
    for request in requests {
        client.send(&request, &[]);
        let error = client.receive_error();
        assert_eq!(error.code, ErrorCode::ModelMissing, "{request:?}");
        assert!(error.message.contains("/nowhere/at/all"), "{error:?}");
        assert!(error.detail.is_some() && error.hint.is_some());
    }
    let (done, _) = client.ask(&Request::Unload { model: missing }, &[]);
    assert_eq!(done, Response::Done);
    let status = server.status();
    assert_eq!((status.requests, status.failed_requests), (5, 4));
}

#[test]
fn signals_end_it_in_order() {
    for signal in ["TERM", "INT"] {
        let directory = tempfile::tempdir().unwrap();
        let mut server = Server::start(directory.path(), &config());
        let mut idle = server.connect();
        idle.ask(&Request::Status, &[]);
        server.signal(signal);
        assert_eq!(server.exit_within(5 * SECOND).code(), Some(0));
        assert!(idle.receive().is_none());
        assert!(!directory.path().join("server.sock").exists());
    }
}

#[test]
fn the_end_of_stdin_ends_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::start(directory.path(), &config());
    let _idle = server.connect();
    drop(server.stdin.take());
    assert_eq!(server.exit_within(SECOND).code(), Some(0));
}

#[test]
fn more_input_than_the_configuration_is_ignored() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::start(directory.path(), &config());
    server.stdin.as_mut().unwrap().write_all(b"more\n").unwrap();
    server.status();
}

#[test]
fn a_bad_start_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let mut cases = vec![("{}\n".to_owned(), "configuration")];
    let mut with = |change: fn(&mut ServerConfig), says| {
        let mut config = config();
        change(&mut config);
        cases.push((serde_json::to_string(&config).unwrap() + "\n", says));
    };
    with(|config| config.device = "abacus".into(), "abacus");
    with(|config| config.dtype = "float8".into(), "float8");
    with(
        |config| config.socket = "none/server.sock".into(),
        "none/server.sock",
    );
    with(|config| config.socket = "s".repeat(200), "ssss");
    with(|config| config.lock_file = "none/lock".into(), "none/lock");
    with(
        |config| config.max_queued_requests = 0,
        "max_queued_requests",
    );
    for (input, says) in cases {
        let mut server = Server::spawn_with_input(directory.path(), &input, &config());
        let line = server.wait_for_log("ERROR: ");
        assert!(line.contains(says), "{line}");
        assert_eq!(server.exit_within(PATIENCE).code(), Some(1), "{line}");
    }
    let mut server = Server::spawn_with_input(directory.path(), "", &config());
    drop(server.stdin.take());
    assert_eq!(server.exit_within(PATIENCE).code(), Some(1));
}

#[test]
fn a_file_in_place_of_the_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("server.sock");
    std::fs::write(&path, "precious").unwrap();
    let mut server = Server::spawn(directory.path(), &config());
    server.wait_for_log("ERROR: could not listen on socket");
    assert_eq!(server.exit_within(PATIENCE).code(), Some(1));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_socket_left_by_a_dead_server_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    drop(UnixListener::bind(directory.path().join("server.sock")).unwrap());
    Server::start(directory.path(), &config()).status();

    let mut killed = Server::start(directory.path(), &config());
    killed.signal("KILL");
    killed.exit_within(PATIENCE);
    assert!(directory.path().join("server.sock").exists());
    Server::start(directory.path(), &config()).status();
}

#[test]
fn a_second_server_waits_for_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = Server::start(directory.path(), &config());
    let second = Server::spawn(directory.path(), &config());
    assert!(!second.logs_within("INFO: ready", SECOND / 2));
    assert_eq!(first.status().pid, first.pid());
    first.signal("TERM");
    first.exit_within(PATIENCE);
    second.wait_for_log("INFO: ready");
    assert_eq!(second.status().pid, second.pid());
}

#[test]
fn a_second_server_gives_up_after_a_while() {
    let directory = tempfile::tempdir().unwrap();
    let first = Server::start(directory.path(), &config());
    let begin = Instant::now();
    let mut second = Server::spawn(directory.path(), &config());
    let line = second.wait_for_log("ERROR: ");
    assert!(line.contains("server.lock"), "{line}");
    assert_eq!(second.exit_within(PATIENCE).code(), Some(1));
    assert!(begin.elapsed() >= 9 * SECOND);
    assert_eq!(first.status().pid, first.pid());
}

#[test]
fn a_server_that_waits_for_the_lock_can_be_ended() {
    let directory = tempfile::tempdir().unwrap();
    let _first = Server::start(directory.path(), &config());
    let mut second = Server::spawn(directory.path(), &config());
    assert!(!second.logs_within("INFO: ready", SECOND / 2));
    second.signal("TERM");
    assert_eq!(second.exit_within(SECOND).code(), Some(0));
    let mut third = Server::spawn(directory.path(), &config());
    assert!(!third.logs_within("INFO: ready", SECOND / 2));
    drop(third.stdin.take());
    assert_eq!(third.exit_within(SECOND).code(), Some(0));
}

#[test]
fn a_load_that_nobody_waits_for_keeps_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config();
    config.idle_timeout_ms = 300;
    let mut server = Server::start(directory.path(), &config);
    // A pipe is read when somebody writes to it: until then the load goes on.
    let slow = directory.path().join("slow");
    std::fs::create_dir(&slow).unwrap();
    let pipe = slow.join("config.json");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let mut client = server.connect();
    let model = model(&slow);
    client.send(&Request::Load { model }, &[]);
    // That opens as soon as the load does.
    let writer = std::fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    drop(client);
    std::thread::sleep(SECOND);
    server.ask(&Request::Status, &[]);
    drop(writer);
    assert_eq!(server.exit_within(PATIENCE).code(), Some(0));
}

#[test]
fn an_idle_server_ends() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config();
    config.idle_timeout_ms = 1500;
    let mut server = Server::start(directory.path(), &config);
    let mut client = server.connect();
    let begin = Instant::now();
    while begin.elapsed() < 2 * SECOND {
        // Work keeps it alive.
        let model = model(directory.path());
        client.ask(&Request::Unload { model }, &[]);
        std::thread::sleep(Duration::from_millis(100));
    }
    let worked = Instant::now();
    // An open connection and questions for the status do not.
    while server.logs_within("", Duration::from_millis(100)) || worked.elapsed() < SECOND {
        client.ask(&Request::Status, &[]);
    }
    assert_eq!(server.exit_within(PATIENCE).code(), Some(0));
    assert!(worked.elapsed() >= SECOND);
    assert!(client.receive().is_none());
    assert!(!directory.path().join("server.sock").exists());
}
