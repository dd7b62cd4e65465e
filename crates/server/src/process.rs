//! The process itself: its tie to the supervisor, its rank for the kernel's
//! out-of-memory killer, its processor. The only unsafe code of the server.
#![allow(unsafe_code)]

use std::io::{self, Read};
use std::thread;

use crate::log;

/// Added to the process's badness for the out-of-memory killer (-1000 to 1000):
/// the server has to go before any process of the database.
const OOM_SCORE_ADJ: &str = "500";

/// Ties this process to the supervisor that started it: it is killed with the
/// supervisor, receives no signals of the supervisor's terminal and creates
/// files for its own user only.
///
/// Returns false when the supervisor has died already.
pub fn follow_supervisor() -> bool {
    // SAFETY: getppid, setsid and umask take no pointers and cannot fail in a
    // way that matters: setsid only fails for a process that leads its group.
    let parent = unsafe {
        libc::setsid();
        libc::umask(0o077);
        libc::getppid()
    };
    // SAFETY: PR_SET_PDEATHSIG takes one integer argument and no pointers.
    let tied = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) };
    if tied != 0 {
        log::warning(format_args!(
            "could not ask for a signal at the supervisor's death: {}",
            io::Error::last_os_error()
        ));
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ) {
        log::debug(format_args!("could not raise oom_score_adj: {error}"));
    }
    // The signal is not sent for a parent that died before it was asked for.
    // SAFETY: getppid takes nothing and always succeeds.
    parent == unsafe { libc::getppid() }
}

/// Allows as many open files as the administrator lets this process have: every
/// session keeps a connection, and there may be more than the usual 1024.
pub fn allow_many_files() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls get a pointer to an initialised structure of theirs.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit) == 0
        }
    };
    if !raised {
        log::warning(format_args!(
            "could not raise the limit of open files: {}",
            io::Error::last_os_error()
        ));
    }
}

/// Ends the process as soon as standard input ends: the supervisor holds its
/// other end open as long as it lives.
///
/// # Errors
/// The thread that watches could not be started.
pub fn exit_with_stdin() -> io::Result<()> {
    thread::Builder::new()
        .name("liveness".into())
        .spawn(|| {
            let mut ignored = [0u8; 256];
            let mut stdin = io::stdin().lock();
            loop {
                match stdin.read(&mut ignored) {
                    Ok(0) => exit_now(0),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => exit_now(0),
                }
            }
        })
        .map(|_| ())
}

/// Ends the process at once. Nothing is unwound and no exit handler runs:
/// threads may be computing, and libraries that tidy up under them crash.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// The user this process acts as.
pub fn effective_user() -> u32 {
    // SAFETY: geteuid takes nothing and always succeeds.
    unsafe { libc::geteuid() }
}

/// Tells the tensor library how many threads to compute with. Must be called
/// while the process has one thread.
pub fn set_compute_threads_env(threads: usize) {
    for name in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
        // SAFETY: the caller is the only thread, so that nobody reads the
        // environment meanwhile.
        unsafe { std::env::set_var(name, threads.to_string()) };
    }
}

/// What the processor lacks of that which this program was built for.
#[cfg(target_arch = "x86_64")]
pub fn missing_processor_features() -> Vec<&'static str> {
    use core::arch::x86_64::__cpuid_count;

    // std's detection macros answer at compile time for features that the
    // build assumes, which is just the case to find out here.
    let basic = __cpuid_count(1, 0);
    let extended = if __cpuid_count(0, 0).eax >= 7 {
        __cpuid_count(7, 0).ebx
    } else {
        0
    };
    let features = [
        (cfg!(target_feature = "avx"), basic.ecx >> 28, "AVX"),
        (cfg!(target_feature = "fma"), basic.ecx >> 12, "FMA"),
        (cfg!(target_feature = "f16c"), basic.ecx >> 29, "F16C"),
        (cfg!(target_feature = "avx2"), extended >> 5, "AVX2"),
        (cfg!(target_feature = "bmi2"), extended >> 8, "BMI2"),
        (cfg!(target_feature = "avx512f"), extended >> 16, "AVX-512F"),
    ];
    features
        .into_iter()
        .filter(|(assumed, bits, _)| *assumed && bits & 1 == 0)
        .map(|(_, _, name)| name)
        .collect()
}

/// What the processor lacks of that which this program was built for.
#[cfg(not(target_arch = "x86_64"))]
pub fn missing_processor_features() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::missing_processor_features;

    #[test]
    fn the_processor_that_runs_this_test_is_good_enough() {
        assert_eq!(missing_processor_features(), Vec::<&str>::new());
    }
}
