//! Many clients of a model server, without PostgreSQL: what sharing a device gives.
//!
//!     clients SERVER MODEL_DIRECTORY TEXTS.txt DEVICE SECONDS [CLIENTS...]
//!
//! Starts SERVER in a temporary folder, loads the model, and has each number of clients (1 and 32
//! without any) embed one text after the other for so many seconds, each on a connection of its own
//! as a session of PostgreSQL has it. Prints texts per second and percentiles of a request's
//! milliseconds, by the number of clients; the last line is one client with arrays of 1,024 texts.
//! The cache of embeddings is off.

use std::env;
use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sight_protocol::{
    FrameDecoder, Limits, ModelRef, Request, Response, ServerConfig, ServerStatus, encode,
};

type Failure = Box<dyn Error + Send + Sync>;

const START_PATIENCE: Duration = Duration::from_secs(60);
const ARRAY: usize = 1024;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [program, model, texts, device, seconds, clients @ ..] = args.as_slice() else {
        return Err("usage: clients SERVER MODEL TEXTS DEVICE SECONDS [CLIENTS...]".into());
    };
    let texts = fs::read_to_string(texts)?;
    let texts: Vec<&str> = texts.lines().collect();
    let time = Duration::from_secs_f64(seconds.parse()?);
    let mut counts = clients
        .iter()
        .map(|count| count.parse())
        .collect::<Result<Vec<usize>, _>>()?;
    if counts.is_empty() {
        counts = vec![1, 32];
    }
    let server = Server::start(program, device)?;
    let model = ModelRef {
        name: "model".into(),
        directory: fs::canonicalize(model)?.display().to_string(),
        limits: Limits {
            max_text_bytes: 1 << 20,
            max_image_bytes: 0,
            max_image_pixels: 0,
        },
    };
    let mut first = server.connect()?;
    first.embed(&model, &texts[..1])?;
    // One batch as large as they get, so that memory and kernels are there.
    first.embed(&model, &texts[..ARRAY.min(texts.len())])?;
    let Response::Status(status) = first.ask(&Request::Status)?.0 else {
        return Err("the server does not tell its status".into());
    };
    println!("{}", title(&status));
    for count in counts {
        let times = run(&server, &model, &texts, count, 1, time)?;
        println!(
            "{count} clients, one text each: {}",
            summary(&times, 1, time)
        );
    }
    let times = run(&server, &model, &texts, 1, ARRAY, time)?;
    println!(
        "1 client, {ARRAY} texts each: {}",
        summary(&times, ARRAY, time)
    );
    Ok(())
}

fn title(status: &ServerStatus) -> String {
    let memory = |bytes: Option<u64>| bytes.unwrap_or(0) >> 20;
    format!(
        "{} in {}, {} of {} MB of its memory used",
        status.device,
        status.dtype,
        memory(status.device_memory_used_bytes),
        memory(status.device_memory_bytes)
    )
}

/// Seconds of all requests of so many clients at once, of `size` texts each.
fn run(
    server: &Server,
    model: &ModelRef,
    texts: &[&str],
    clients: usize,
    size: usize,
    time: Duration,
) -> Result<Vec<f64>, Failure> {
    let connections = (0..clients).map(|_| server.connect());
    let connections = connections.collect::<Result<Vec<_>, _>>()?;
    let end = Instant::now() + time;
    thread::scope(|scope| {
        let threads = connections
            .into_iter()
            .enumerate()
            .map(|(number, mut client)| {
                scope.spawn(move || -> Result<Vec<f64>, Failure> {
                    let mut times = Vec::new();
                    let mut place = number * 331;
                    while Instant::now() < end {
                        let batch: Vec<&str> = (0..size)
                            .map(|index| texts[(place + index) % texts.len()])
                            .collect();
                        let begun = Instant::now();
                        client.embed(model, &batch)?;
                        times.push(begun.elapsed().as_secs_f64());
                        place += size;
                    }
                    Ok(times)
                })
            });
        let threads: Vec<_> = threads.collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| "a client panicked")??);
        }
        Ok(all)
    })
}

fn summary(times: &[f64], size: usize, time: Duration) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share) as usize] * 1000.0;
    let rate = (times.len() * size) as f64 / time.as_secs_f64();
    format!(
        "{rate:.0} texts/s; a request {:.2} ms (median), {:.2} ms (95 %)",
        at(0.5),
        at(0.95)
    )
}

/// A server that ends with this process.
struct Server {
    folder: PathBuf,
    child: Child,
    /// Held open: its end is the end of the server.
    _stdin: ChildStdin,
}

impl Server {
    fn start(program: &str, device: &str) -> Result<Self, Failure> {
        let folder = env::temp_dir().join(format!("pg_sight-clients-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let mut child = Command::new(fs::canonicalize(program)?)
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let mut stdin = child
            .stdin
            .take()
            .ok_or("the server has no standard input")?;
        writeln!(stdin, "{}", serde_json::to_string(&config(device))?)?;
        stdin.flush()?;
        let server = Self {
            folder,
            child,
            _stdin: stdin,
        };
        let begun = Instant::now();
        while server.connect().is_err() {
            if begun.elapsed() > START_PATIENCE {
                return Err("the server does not start".into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    fn connect(&self) -> Result<Client, Failure> {
        Ok(Client {
            stream: UnixStream::connect(self.folder.join("server.sock"))?,
            decoder: FrameDecoder::default(),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn config(device: &str) -> ServerConfig {
    ServerConfig {
        socket: "server.sock".into(),
        lock_file: "server.lock".into(),
        statistics_file: "statistics.json".into(),
        device: device.into(),
        dtype: "auto".into(),
        load_in_4bit: false,
        threads: 0,
        idle_timeout_ms: 0,
        max_queued_requests: 1024,
        max_queued_bytes: 1 << 30,
        max_batch_tokens: 0,
        max_batch_images: 0,
        max_model_bytes: 0,
        embed_cache_bytes: 0,
        preload_models: Vec::new(),
        warm_up: false,
        metrics_address: None,
    }
}

struct Client {
    stream: UnixStream,
    decoder: FrameDecoder,
}

impl Client {
    fn embed(&mut self, model: &ModelRef, texts: &[&str]) -> Result<(), Failure> {
        let request = Request::Embed {
            model: model.clone(),
            texts: texts.iter().map(|text| (*text).to_owned()).collect(),
            prompt_name: None,
        };
        match self.ask(&request)? {
            (Response::Embeddings(batch), _) if batch.rows as usize == texts.len() => Ok(()),
            (other, _) => Err(format!("the server answered {other:?}").into()),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<(Response, Bytes), Failure> {
        self.stream.write_all(&encode(request, &[])?)?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok((frame.message()?, frame.body));
            }
            match self.stream.read(&mut buffer)? {
                0 => return Err("the server closed the connection".into()),
                count => self.decoder.push(&buffer[..count]),
            }
        }
    }
}
