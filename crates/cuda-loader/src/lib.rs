//! CUDA's libraries, loaded when a device is wanted and not when the program starts.
//!
//! candle calls them as linked libraries, and a program that is linked with them cannot even
//! start where there is no driver. This crate defines the functions that candle calls under
//! their own names, so that the linker needs no library: each jumps to the function of the
//! library once [`load`] has found it, and until then fails as CUDA's functions do, with an
//! error that is none of success.
//!
//! A function that candle begins to call with another version and that is not listed in
//! `functions.rs` is an undefined symbol at link time.

use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

mod functions;

/// `CUDA_ERROR_UNKNOWN`; the other libraries have no success of this number either.
const UNKNOWN: c_int = 999;

/// In place of what has not been found.
extern "C" fn absent() -> c_int {
    UNKNOWN
}

/// A library by the names that its versions have, and what is called of it.
struct Library {
    /// What it is, as the subject of a sentence.
    title: &'static str,
    /// Without any, its functions stay absent.
    files: &'static [&'static CStr],
    functions: &'static [Function],
}

struct Function {
    name: &'static CStr,
    /// Where the function is, or [`absent`].
    address: &'static AtomicPtr<c_void>,
    /// Jumps there. Never called from here: naming it makes the linker take it.
    _jump: unsafe extern "C" fn(),
}

/// Loads the libraries, the first time it is called.
///
/// # Errors
/// One is not there or cannot be loaded; the text says which and why, in sentences.
pub fn load() -> Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    let load = || functions::LIBRARIES.iter().try_for_each(Library::load);
    LOADED.get_or_init(load).clone()
}

impl Library {
    /// Finds its functions. One that this version of the library lacks stays absent.
    fn load(&self) -> Result<(), String> {
        if self.files.is_empty() {
            return Ok(());
        }
        let handle = self.open()?;
        for function in self.functions {
            // SAFETY: the handle is that of a library which is never closed.
            let found = unsafe { libc::dlsym(handle, function.name.as_ptr()) };
            if !found.is_null() {
                function.address.store(found, Ordering::Release);
            }
        }
        Ok(())
    }

    fn open(&self) -> Result<*mut c_void, String> {
        let mut reasons = Vec::new();
        for file in self.files {
            // SAFETY: the name ends with a zero. What these libraries do when they are loaded
            // is what they do for every program that is linked with them.
            let handle = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW) };
            if !handle.is_null() {
                return Ok(handle);
            }
            // SAFETY: after a failure of this thread it is a text that lives until the next call.
            let reason = unsafe { CStr::from_ptr(libc::dlerror()) };
            reasons.push(reason.to_string_lossy().into_owned());
        }
        Err(format!(
            "{} could not be loaded ({}).",
            self.title,
            reasons.join("; ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" {
        fn cuInit(flags: u32) -> c_int;
    }

    #[test]
    fn functions_fail_where_their_library_is_not_there() {
        // With a driver it is found by then, and without one it stays absent.
        let loaded = load();
        // SAFETY: it takes a number, and is safe to call again and again.
        let result = unsafe { cuInit(0) };
        match loaded {
            Ok(()) => assert_ne!(result, UNKNOWN),
            Err(reason) => {
                assert!(reason.contains("could not be loaded (lib"), "{reason}");
                if reason.contains("libcuda.so.1") {
                    assert_eq!(result, UNKNOWN);
                }
            }
        }
        assert_eq!(absent(), UNKNOWN);
    }

    #[test]
    fn a_library_that_is_not_there_is_named() {
        let library = Library {
            title: "The test's library",
            files: &[
                c"libnothing-of-the-kind.so.1",
                c"libnothing-of-the-kind.so.2",
            ],
            functions: &[],
        };
        let reason = library.load().unwrap_err();
        assert!(reason.starts_with("The test's library could not be loaded (libnothing"));
        assert!(reason.contains("kind.so.2: cannot open"), "{reason}");
    }
}
