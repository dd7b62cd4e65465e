//! As much of HTTP as a hub's client needs: one request a connection.

use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// Bytes written at a time to a slow client.
const SLOW_PIECE: usize = 1000;

pub struct Request {
    method: String,
    pub path: String,
    pub query: String,
    /// First and last byte asked for.
    pub range: Option<(usize, usize)>,
    pub authorization: Option<String>,
}

impl Request {
    /// Reads the head of a request; none when the client sends something else.
    pub fn read(stream: &TcpStream) -> Option<Self> {
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let first = lines.next()?;
        let mut words = first.split(' ');
        let method = words.next()?.to_owned();
        let target = words.next()?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut request = Self {
            method,
            path: path.to_owned(),
            query: query.to_owned(),
            range: None,
            authorization: None,
        };
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(": ")?;
            match name.to_ascii_lowercase().as_str() {
                "range" => request.range = parse_range(value),
                "authorization" => request.authorization = Some(value.to_owned()),
                _ => {}
            }
        }
        Some(request)
    }
}

impl fmt::Display for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.method, self.path)?;
        if let Some((first, last)) = self.range {
            write!(formatter, " range={first}-{last}")?;
        }
        match &self.authorization {
            Some(authorization) => write!(formatter, " authorization={authorization}"),
            None => Ok(()),
        }
    }
}

fn parse_range(value: &str) -> Option<(usize, usize)> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

pub struct Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
    pub range: Option<(usize, usize)>,
    /// The connection ends before this byte of the body's whole.
    pub cut_at: Option<u64>,
    /// After each piece of the body.
    pub pause: Option<Duration>,
}

impl Answer {
    pub fn status(status: u16) -> Self {
        Self {
            status,
            headers: String::new(),
            body: Vec::new(),
            range: None,
            cut_at: None,
            pause: None,
        }
    }

    pub fn file(body: Vec<u8>) -> Self {
        Self {
            body,
            ..Self::status(200)
        }
    }

    pub fn json(value: &Value) -> Self {
        let mut answer = Self::file(value.to_string().into_bytes());
        answer.header("Content-Type", "application/json");
        answer
    }

    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let mut answer = Self {
            status,
            ..Self::json(&json!({ "error": message }))
        };
        answer.header("X-Error-Code", code);
        answer.header("X-Error-Message", message);
        answer
    }

    pub fn header(&mut self, name: &str, value: &str) {
        self.headers.push_str(&format!("{name}: {value}\r\n"));
    }

    pub fn write(mut self, mut stream: &TcpStream, request: &Request) -> io::Result<()> {
        let mut body = self.body.as_slice();
        let mut first = 0;
        if let Some((from, to)) = self.range {
            let all = body.len();
            first = from;
            body = &body[from..=to];
            self.status = 206;
            self.headers
                .push_str(&format!("Content-Range: bytes {from}-{to}/{all}\r\n"));
        }
        write!(
            stream,
            "HTTP/1.1 {} Planned\r\nContent-Length: {}\r\nConnection: close\r\n{}\r\n",
            self.status,
            body.len(),
            self.headers
        )?;
        if request.method == "HEAD" {
            return Ok(());
        }
        if let Some(byte) = self.cut_at {
            let left = (byte as usize).saturating_sub(first).min(body.len());
            body = &body[..left];
        }
        let Some(pause) = self.pause else {
            return stream.write_all(body);
        };
        for piece in body.chunks(SLOW_PIECE) {
            stream.write_all(piece)?;
            thread::sleep(pause);
        }
        Ok(())
    }
}
