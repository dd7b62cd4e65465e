//! The configuration that the supervisor hands over.

use std::io::{self, BufRead};

use sight_protocol::ServerConfig;
use thiserror::Error;

/// The longest configuration line, in bytes.
const MAX_LINE_BYTES: u64 = 64 * 1024;

#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("could not read the configuration from standard input")]
    Read(#[from] io::Error),
    #[error(
        "standard input ended before the configuration: the server is started by PostgreSQL, not by hand"
    )]
    Missing,
    #[error("configuration is not valid")]
    Invalid(#[from] serde_json::Error),
    #[error("configuration field \"{field}\" must be {must}")]
    Value {
        field: &'static str,
        must: &'static str,
    },
}

/// Reads one line of JSON and checks it. Nothing after the line is consumed
/// that `input` does not keep in its own buffer.
///
/// # Errors
/// No line, no JSON of a [`ServerConfig`], a value out of range.
pub fn read(input: &mut impl BufRead) -> Result<ServerConfig, ConfigError> {
    let mut line = String::new();
    io::Read::take(&mut *input, MAX_LINE_BYTES).read_line(&mut line)?;
    if !line.ends_with('\n') {
        return Err(ConfigError::Missing);
    }
    let config: ServerConfig = serde_json::from_str(&line)?;
    if config.max_queued_requests == 0 {
        return Err(ConfigError::Value {
            field: "max_queued_requests",
            must: "at least 1",
        });
    }
    for (field, value) in [
        ("socket", &config.socket),
        ("lock_file", &config.lock_file),
        ("statistics_file", &config.statistics_file),
    ] {
        if value.is_empty() {
            let must = "a path";
            return Err(ConfigError::Value { field, must });
        }
    }
    Ok(config)
}

/// Tokens and pictures in a batch for settings, where 0 means what suits the
/// device. A batch is not interrupted, so its size is how long a small request
/// may have to wait: on a CPU, where large batches gain little, they are small.
pub fn batch_bounds(config: &ServerConfig, on_cpu: bool) -> (usize, usize) {
    let (tokens, images) = if on_cpu { (1024, 4) } else { (16_384, 32) };
    let bound = |setting: u32, suitable: usize| match setting {
        0 => suitable,
        setting => setting as usize,
    };
    (
        bound(config.max_batch_tokens, tokens),
        bound(config.max_batch_images, images),
    )
}

/// Compute threads for a setting, where 0 means one for each physical core that
/// this process may use.
pub fn compute_threads(setting: u32) -> usize {
    if setting > 0 {
        return setting as usize;
    }
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    num_cpus::get_physical().clamp(1, allowed)
}

#[cfg(test)]
mod tests {
    use super::{ConfigError, batch_bounds, compute_threads, read};

    const GOOD: &str = r#"{"socket": "s", "lock_file": "l", "device": "cpu", "dtype": "auto", "load_in_4bit": false, "threads": 0,
        "statistics_file": "f", "idle_timeout_ms": 0, "max_queued_requests": 1, "max_queued_bytes": 1,
        "max_batch_tokens": 1, "max_batch_images": 1, "max_model_bytes": 0, "embed_cache_bytes": 0,
        "preload_models": [], "warm_up": true, "metrics_address": null}"#;

    fn line(json: &str) -> Vec<u8> {
        format!("{}\nrest", json.replace('\n', " ")).into_bytes()
    }

    #[test]
    fn a_line_is_read_and_no_more() {
        let input = line(GOOD);
        let mut rest = input.as_slice();
        assert_eq!(read(&mut rest).unwrap().device, "cpu");
        assert_eq!(rest, b"rest");
    }

    #[test]
    fn bad_configurations_are_errors() {
        assert!(matches!(read(&mut &b""[..]), Err(ConfigError::Missing)));
        assert!(matches!(
            read(&mut GOOD.replace('\n', " ").as_bytes()),
            Err(ConfigError::Missing)
        ));
        assert!(matches!(
            read(&mut &b"{}\n"[..]),
            Err(ConfigError::Invalid(_))
        ));
        for (good, bad) in [
            ("\"max_queued_requests\": 1", "\"max_queued_requests\": 0"),
            ("\"socket\": \"s\"", "\"socket\": \"\""),
            ("\"lock_file\": \"l\"", "\"lock_file\": \"\""),
            ("\"statistics_file\": \"f\"", "\"statistics_file\": \"\""),
        ] {
            let json = GOOD.replace(good, bad);
            assert_ne!(json, GOOD);
            assert!(matches!(
                read(&mut line(&json).as_slice()),
                Err(ConfigError::Value { .. })
            ));
        }
    }

    #[test]
    fn a_batch_bound_of_zero_suits_the_device() {
        let mut config = read(&mut line(GOOD).as_slice()).unwrap();
        assert_eq!(batch_bounds(&config, true), (1, 1));
        config.max_batch_tokens = 0;
        config.max_batch_images = 0;
        let (cpu, gpu) = (batch_bounds(&config, true), batch_bounds(&config, false));
        assert!(cpu.0 < gpu.0 && cpu.1 < gpu.1);
    }

    #[test]
    fn threads_are_never_none() {
        assert!(compute_threads(0) >= 1);
        assert_eq!(compute_threads(7), 7);
    }
}
