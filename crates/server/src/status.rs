//! The state of the server, for the status view.

use std::time::Duration;

use sight_protocol::{LoadedModel, ServerStatus};

use crate::service::Service;

pub fn of(service: &Service) -> ServerStatus {
    let activity = &service.activity;
    let (cached_embeddings, cache_bytes) = service.cache.size();
    let loaded = service.models.loaded().into_iter();
    let device_memory = service.place.memory();
    ServerStatus {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").into(),
        device: service.place.device_name(),
        dtype: service.place.dtype_name().into(),
        threads: u32::try_from(service.threads).unwrap_or(u32::MAX),
        memory_bytes: resident_bytes(),
        device_memory_used_bytes: device_memory.map(|memory| memory.used_bytes),
        device_memory_bytes: device_memory.map(|memory| memory.total_bytes),
        uptime_ms: milliseconds(activity.uptime()),
        requests: activity.requests(),
        failed_requests: activity.failed(),
        queued_requests: activity.waiting() as u64,
        cached_embeddings: cached_embeddings as u64,
        cache_bytes: cache_bytes as u64,
        loaded_models: loaded
            .map(|loaded| LoadedModel {
                directory: loaded.directory,
                memory_bytes: loaded.bytes,
                unused_ms: milliseconds(loaded.used.elapsed()),
            })
            .collect(),
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Resident memory of this process, in bytes; 0 where the kernel does not tell.
pub fn resident_bytes() -> u64 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|text| parse_resident_bytes(&text))
        .unwrap_or(0)
}

/// Reads the line `VmRSS:  1234 kB`.
fn parse_resident_bytes(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::{parse_resident_bytes, resident_bytes};

    #[test]
    fn memory_is_read_from_the_kernel() {
        let text = "VmHWM:\t  300 kB\nVmRSS:\t  200 kB\n";
        assert_eq!(parse_resident_bytes(text), Some(200 * 1024));
        assert_eq!(parse_resident_bytes("VmRSS: much"), None);
        assert!(resident_bytes() > 100 * 1024);
    }
}
