//! The model server of pg_sight. PostgreSQL starts it (see `docs/protocol.md`);
//! this file only starts it up.
#![deny(unsafe_code)]

mod activity;
mod cache;
mod config;
mod connection;
mod describe;
mod embed;
mod engine;
mod error;
#[cfg(test)]
mod fake;
mod listener;
mod log;
mod metrics;
mod model_thread;
mod models;
mod pipeline;
mod process;
mod pulls;
mod queue;
mod registry;
mod service;
mod statistics;
mod status;

use anyhow::{Context, bail};

/// Threads that wait for sockets; models compute on threads of their own.
const SOCKET_THREADS: usize = 2;

fn main() {
    let code = match run() {
        Ok(()) => 0,
        Err(error) => {
            log::error(format_args!("{error:#}"));
            1
        }
    };
    // Not by returning: threads may still be computing.
    process::exit_now(code)
}

fn run() -> anyhow::Result<()> {
    let missing = process::missing_processor_features();
    if !missing.is_empty() {
        bail!(
            "this model server was built for processors with {}, which this one lacks",
            missing.join(" and ")
        );
    }
    if !process::follow_supervisor() {
        return Ok(());
    }
    process::allow_many_files();
    log::install_panic_hook();
    let config = config::read(&mut std::io::stdin().lock())?;
    let threads = config::compute_threads(config.threads);
    process::set_compute_threads_env(threads);
    process::exit_with_stdin().context("could not start the thread that watches standard input")?;
    sight_models::set_threads(threads)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(SOCKET_THREADS)
        .thread_name("socket")
        .enable_all()
        .build()
        .context("could not start the threads that serve sockets")?;
    runtime.block_on(listener::run(config, threads))?;
    // Dropping it would wait for loads and other blocking work.
    runtime.shutdown_background();
    Ok(())
}
