//! How far a pull is, for those who watch it.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a pull is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// Asking the hub for the commit and its files.
    #[default]
    Resolving,
    /// Another pull downloads the same file.
    Waiting,
    Downloading,
    /// The files are there, and their content is looked at.
    Inspecting,
}

/// A moment of a pull. Files that the cache holds already count as done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgressState {
    pub phase: Phase,
    /// Path in the repository of the file in work.
    pub file: Option<String>,
    pub files_done: u32,
    pub files_total: u32,
    pub bytes_done: u64,
    pub bytes_total: u64,
}

/// The progress of one pull, shared with those who watch it.
#[derive(Debug, Default)]
pub struct Progress(Mutex<ProgressState>);

impl Progress {
    pub fn state(&self) -> ProgressState {
        self.lock().clone()
    }

    pub fn enter(&self, phase: Phase) {
        self.lock().phase = phase;
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut ProgressState)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, ProgressState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
