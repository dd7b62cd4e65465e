//! A server of its own for each test, and a plain client.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod encoder;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sight_protocol::{
    ErrorReply, FrameDecoder, Limits, ModelRef, ModelStatistics, Request, Response, ServerConfig,
    ServerStatus, encode,
};

/// Longer than anything takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The configuration of most tests, with paths relative to the directory in
/// which the server is started.
pub fn config() -> ServerConfig {
    ServerConfig {
        socket: "server.sock".into(),
        lock_file: "server.lock".into(),
        statistics_file: "statistics.json".into(),
        device: "cpu".into(),
        dtype: "auto".into(),
        load_in_4bit: false,
        threads: 2,
        idle_timeout_ms: 0,
        max_queued_requests: 100,
        max_queued_bytes: 1 << 30,
        max_batch_tokens: 1024,
        max_batch_images: 4,
        max_model_bytes: 0,
        // Most tests are of what is computed.
        embed_cache_bytes: 0,
        preload_models: Vec::new(),
        warm_up: true,
        metrics_address: None,
    }
}

/// A model with ample limits.
pub fn model(directory: &Path) -> ModelRef {
    ModelRef {
        name: "test".into(),
        directory: directory.display().to_string(),
        limits: Limits {
            max_text_bytes: 1 << 20,
            max_image_bytes: 1 << 24,
            max_image_pixels: 1 << 24,
        },
    }
}

pub struct Server {
    child: Child,
    /// The end of it tells the server that its supervisor is gone.
    pub stdin: Option<ChildStdin>,
    /// Its log lines; behind a lock, so that threads can share the server.
    log: Mutex<Receiver<String>>,
    socket: PathBuf,
}

impl Server {
    /// Starts a server in `directory`, without waiting for it.
    pub fn spawn(directory: &Path, config: &ServerConfig) -> Self {
        let line = serde_json::to_string(config).unwrap() + "\n";
        Self::spawn_with_input(directory, &line, config)
    }

    /// Starts a server with any input in place of its configuration.
    pub fn spawn_with_input(directory: &Path, input: &str, config: &ServerConfig) -> Self {
        // With few open files until the server has asked for more.
        let mut child = Command::new("sh")
            .args(["-c", "ulimit -Sn 64; exec \"$0\""])
            .arg(env!("CARGO_BIN_EXE_pg_sight_server"))
            .current_dir(directory)
            // What each thread's heap keeps of its largest request would hide
            // what is lost.
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, log) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                // The test may have ended.
                let _ = sender.send(line);
            }
        });
        Self {
            child,
            stdin: Some(stdin),
            log: Mutex::new(log),
            socket: directory.join(&config.socket),
        }
    }

    /// Starts a server and waits until it is ready.
    pub fn start(directory: &Path, config: &ServerConfig) -> Self {
        let server = Self::spawn(directory, config);
        server.wait_for_log("INFO: ready");
        server
    }

    /// The next log line that begins with `start`.
    pub fn wait_for_log(&self, start: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.log.lock().unwrap().recv_timeout(left) {
                Ok(line) if line.starts_with(start) => return line,
                Ok(line) => eprintln!("server: {line}"),
                Err(error) => panic!("the server did not log \"{start}\": {error}"),
            }
        }
    }

    /// Whether it logs a line that begins with `start` within `time`.
    pub fn logs_within(&self, start: &str, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.log.lock().unwrap().recv_timeout(left) {
                Ok(line) if line.starts_with(start) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    pub fn signal(&self, name: &str) {
        let command = format!("kill -{name} {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &command]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end of the process, `time` at most.
    pub fn exit_within(&mut self, time: Duration) -> ExitStatus {
        let deadline = Instant::now() + time;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the server is still running");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn connect(&self) -> Client {
        Client {
            stream: UnixStream::connect(&self.socket).unwrap(),
            decoder: FrameDecoder::default(),
        }
    }

    /// Asks for one thing on a connection of its own.
    pub fn ask(&self, request: &Request, body: &[&[u8]]) -> (Response, Bytes) {
        self.connect().ask(request, body)
    }

    pub fn status(&self) -> ServerStatus {
        match self.ask(&Request::Status, &[]).0 {
            Response::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    /// Directories of the loaded models.
    pub fn loaded(&self) -> Vec<String> {
        let models = self.status().loaded_models.into_iter();
        models.map(|model| model.directory).collect()
    }

    /// The statistics of its only model.
    pub fn statistics(&self) -> ModelStatistics {
        let (answer, _) = self.ask(&Request::Statistics, &[]);
        let Response::Statistics(mut statistics) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(statistics.models.len(), 1);
        statistics.models.remove(0)
    }

    /// Time the process has computed, in clock ticks (usually 10 ms).
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.split_whitespace().collect();
        fields[13].parse::<u64>().unwrap() + fields[14].parse::<u64>().unwrap()
    }

    /// Waits until the process computes no more, `time` at most.
    pub fn wait_until_at_rest(&self, time: Duration) {
        let deadline = Instant::now() + time;
        loop {
            let before = self.cpu_ticks();
            std::thread::sleep(Duration::from_millis(300));
            if self.cpu_ticks() - before <= 2 {
                return;
            }
            assert!(Instant::now() < deadline, "the server still computes");
        }
    }

    /// Waits until the status satisfies a condition.
    pub fn wait_for_status(&self, condition: impl Fn(&ServerStatus) -> bool) -> ServerStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if condition(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{status:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct Client {
    pub stream: UnixStream,
    decoder: FrameDecoder,
}

impl Client {
    pub fn send(&mut self, request: &Request, body: &[&[u8]]) {
        self.stream
            .write_all(&encode(request, body).unwrap())
            .unwrap();
    }

    /// The next answer, or `None` when the server closes the connection.
    pub fn receive(&mut self) -> Option<(Response, Bytes)> {
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0u8; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some((frame.message().unwrap(), frame.body));
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => self.decoder.push(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    pub fn ask(&mut self, request: &Request, body: &[&[u8]]) -> (Response, Bytes) {
        self.send(request, body);
        self.receive().expect("the server closed the connection")
    }

    /// The error that answers a request.
    pub fn ask_error(&mut self, request: &Request, body: &[&[u8]]) -> ErrorReply {
        self.send(request, body);
        self.receive_error()
    }

    /// The error that is the next answer.
    pub fn receive_error(&mut self) -> ErrorReply {
        match self.receive() {
            Some((Response::Error(error), _)) => error,
            other => panic!("{other:?}"),
        }
    }
}
