//! A backend whose server answers with anything but what it should.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use pg_sight_tests::{Cluster, is_alive, sql_failure, wait_until};

/// Version of the messages, and those of its responses that the answers below are of.
const VERSION: u16 = 3;
const EMBEDDINGS: u8 = 2;
const CAPTIONS: u8 = 3;
const DONE: u8 = 4;
const ERROR: u8 = 5;

fn frame(header: &[u8], body: &[u8]) -> Vec<u8> {
    let length = (6 + header.len() + body.len()) as u32;
    let mut frame = length.to_le_bytes().to_vec();
    frame.extend(VERSION.to_le_bytes());
    frame.extend((header.len() as u32).to_le_bytes());
    frame.extend(header);
    frame.extend(body);
    frame
}

/// Vectors of these numbers of rows and dimensions, below 128.
fn embeddings(rows: u8, dimensions: u8, values: &[f32]) -> Vec<u8> {
    let body: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    frame(&[EMBEDDINGS, rows, dimensions], &body)
}

/// Bytes that are always the same.
fn noise(seed: u32, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    let bytes = (0..count).map(|_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    });
    bytes.collect()
}

/// Answers that are wrong, with what a statement must say of them.
fn wrong_answers() -> Vec<(Vec<u8>, &'static str)> {
    const BROKEN: &str = "08P01";
    let huge = [0xff, 0xff, 0xff, 0xff, 0x0f];
    let mut answers = vec![
        (vec![0xff; 64], BROKEN),
        (vec![0; 64], BROKEN),
        (b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), BROKEN),
        (vec![6, 0, 0, 0, 99, 0, 0, 0, 0, 0], BROKEN),
        (frame(&[], &[]), BROKEN),
        (frame(&[DONE], &[]), BROKEN),
        (frame(&[DONE, 0], &[]), BROKEN),
        (frame(&[CAPTIONS, 1, 1, b'x'], &[]), BROKEN),
        (frame(&[99], &[]), BROKEN),
        (frame(&[&[CAPTIONS], &huge[..]].concat(), &[]), BROKEN),
        (
            frame(&[&[EMBEDDINGS], &huge[..], &huge[..]].concat(), &[]),
            BROKEN,
        ),
        (embeddings(1, 2, &[1.0]), BROKEN),
        (embeddings(2, 1, &[1.0, 1.0]), BROKEN),
        (embeddings(0, 1, &[]), BROKEN),
        (embeddings(1, 0, &[]), BROKEN),
        (embeddings(1, 1, &[f32::NAN]), "XX000"),
        (embeddings(1, 1, &[f32::INFINITY]), "XX000"),
        // An error with a message that is no UTF-8.
        (frame(&[ERROR, 0, 2, 0xff, 0xff, 0, 0, 0], &[]), BROKEN),
        // Nothing, a part of a frame, and the end.
        (vec![], "PS002"),
        (vec![9, 0, 0, 0, 3], "PS002"),
    ];
    answers.extend((1..=40).map(|seed| (frame(&noise(seed, 20), &noise(seed, 7)), "")));
    answers
}

type Answer = Arc<Mutex<Vec<u8>>>;

/// Answers each request of a connection, then closes it.
fn serve(listener: &UnixListener, answer: &Answer) {
    for stream in listener.incoming() {
        let (Ok(mut stream), answer) = (stream, Arc::clone(answer)) else {
            return;
        };
        thread::spawn(move || {
            if read_request(&mut stream).is_some() {
                let answer = answer.lock().unwrap().clone();
                let _ = stream.write_all(&answer);
            }
        });
    }
}

fn read_request(stream: &mut UnixStream) -> Option<()> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut request = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut request).ok()
}

#[test]
fn garbage_of_a_server_is_an_error_of_the_statement() {
    // The server makes room for one that is none.
    let cluster = Cluster::with_models_and(&["pg_sight.idle_timeout = '300ms'"]);
    let mut client = cluster.client();
    let folder = cluster.data().join("base/pgsql_tmp_pg_sight");
    wait_until("the server is gone", Duration::from_secs(20), || {
        cluster.model_server(&mut client).is_none()
    });
    wait_until("nothing listens", Duration::from_secs(20), || {
        !folder.join("server.sock").exists()
    });
    let listener = UnixListener::bind(folder.join("server.sock")).unwrap();
    fs::set_permissions(folder.join("server.sock"), Permissions::from_mode(0o777)).unwrap();
    let answer = Answer::default();
    let shared = Arc::clone(&answer);
    thread::spawn(move || serve(&listener, &shared));

    let backend: i32 = client
        .query_one("SELECT pg_backend_pid()", &[])
        .unwrap()
        .get(0);
    for (number, (bytes, state)) in wrong_answers().into_iter().enumerate() {
        *answer.lock().unwrap() = bytes;
        let failure = sql_failure(client.query("SELECT embed('x')", &[]));
        assert!(
            state.is_empty() || failure.state == state,
            "{number}: {failure:?}"
        );
    }
    assert!(is_alive(backend));
    // A server that an older version has left.
    *answer.lock().unwrap() = vec![6, 0, 0, 0, 1, 0, 0, 0, 0, 0];
    let failure = sql_failure(client.query("SELECT embed('x')", &[]));
    assert!(failure.hint.contains("Restart PostgreSQL"), "{failure:?}");
    *answer.lock().unwrap() = embeddings(1, 2, &[0.5, -0.5]);
    let vector: String = client
        .query_one("SELECT embed('x')::text", &[])
        .unwrap()
        .get(0);
    assert_eq!(vector, "[0.5,-0.5]");
    assert!(!cluster.log().contains("PANIC"));
}
