//! Processes: whether they live, and how they are made not to.

use std::time::{Duration, Instant};

/// Sends a signal.
///
/// # Panics
/// When there is no such process.
pub fn kill(pid: i32, signal: i32) {
    assert!(pid > 1, "not a process to be killed: {pid}");
    // SAFETY: a system call on a process id above 1.
    let sent = unsafe { libc::kill(pid, signal) };
    assert_eq!(sent, 0, "kill {pid}: {}", std::io::Error::last_os_error());
}

/// Whether a process exists and is no zombie.
pub fn is_alive(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The state follows the command's name, which is in parentheses.
    let state = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.trim_start().chars().next());
    !matches!(state, Some('Z' | 'X') | None)
}

/// Waits until a condition holds.
///
/// # Panics
/// When it does not within the time.
pub fn wait_until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + timeout;
    while !condition() {
        assert!(
            Instant::now() < until,
            "waited {timeout:?} in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
