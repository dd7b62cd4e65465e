//! Clients that send anything: the server answers, or closes the connection, and goes on.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::Path;

use sight_protocol::{ModelRef, Request, Response, encode};

#[path = "../../protocol/tests/support/seeds.rs"]
mod seeds;
mod support;
use support::{PATIENCE, Server, config, encoder, model};

const CASES: usize = 3000;

/// Numbers that look random, always the same.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// Frames of requests that the server can answer, and of all others but downloads.
fn frames(model: &ModelRef) -> Vec<Vec<u8>> {
    let embed = Request::Embed {
        model: model.clone(),
        texts: vec!["red shoe".into(), String::new()],
        prompt_name: None,
    };
    let mut frames = vec![encode(&embed, &[]).unwrap().to_vec()];
    let others = seeds::requests().into_iter();
    let others = others.filter(|(name, _)| *name != "pull");
    // Their first byte is for the fuzzer.
    frames.extend(others.map(|(_, bytes)| bytes[1..].to_vec()));
    assert!(seeds::responses().len() > 5);
    frames
}

fn damage(frame: &mut Vec<u8>, dice: &mut Dice) {
    for _ in 0..dice.below(5) {
        let at = dice.below(frame.len() + 1);
        match dice.below(4) {
            0 => frame.insert(at, dice.below(256) as u8),
            1 => frame.truncate(at),
            _ if at < frame.len() => frame[at] = dice.below(256) as u8,
            _ => {}
        }
    }
}

#[test]
fn a_server_outlives_what_clients_send() {
    let directory = tempfile::tempdir().unwrap();
    encoder::write(&directory.path().join("encoder"));
    let encoder: &Path = &directory.path().join("encoder");
    let server = Server::start(directory.path(), &config());
    let frames = frames(&model(encoder));
    let mut dice = Dice(7);
    let mut answered = 0;
    for case in 0..CASES {
        let mut frame = frames[dice.below(frames.len())].clone();
        damage(&mut frame, &mut dice);
        let mut stream = server.connect().stream;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // It may have seen enough before the end.
        let _ = stream.write_all(&frame);
        if case % 2 == 0 {
            let _ = stream.shutdown(Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            answered += usize::from(!answer.is_empty());
        }
    }
    assert!(answered > CASES / 20, "{answered}");
    let embed = Request::Embed {
        model: model(encoder),
        texts: vec!["red shoe".into()],
        prompt_name: None,
    };
    assert!(matches!(server.ask(&embed, &[]).0, Response::Embeddings(_)));
    let status = server.status();
    assert!(status.memory_bytes < 1 << 30, "{status:?}");
    assert_eq!(status.queued_requests, 0);
}
