//! Installations of PostgreSQL, and the user that runs them.

use std::path::PathBuf;
use std::process::Command;

/// The programs of a PostgreSQL.
#[derive(Debug, Clone)]
pub struct Installation {
    bin: PathBuf,
}

impl Installation {
    /// The one that is tested, of `PG_CONFIG`.
    pub fn tested() -> Self {
        Self::of_variable("PG_CONFIG").expect("PG_CONFIG names an installation")
    }

    /// An older one with the same extensions, of `PG_SIGHT_OLD_PG_CONFIG`.
    pub fn older() -> Option<Self> {
        Self::of_variable("PG_SIGHT_OLD_PG_CONFIG")
    }

    fn of_variable(name: &str) -> Option<Self> {
        let output = Command::new(std::env::var_os(name)?)
            .arg("--bindir")
            .output()
            .expect("pg_config runs");
        let bin = String::from_utf8(output.stdout).expect("a path");
        Some(Self {
            bin: PathBuf::from(bin.trim()),
        })
    }

    /// The folder of the programs.
    pub fn bin(&self) -> &PathBuf {
        &self.bin
    }
}

/// User and group that run PostgreSQL, when the tests run as root.
#[derive(Clone, Copy)]
pub(crate) struct Owner {
    pub uid: u32,
    pub gid: u32,
}

impl Owner {
    /// That of `PG_SIGHT_TEST_USER`, or none where the tests' own user can do.
    pub fn choose() -> Option<Self> {
        // SAFETY: a system call without arguments.
        if unsafe { libc::geteuid() } != 0 {
            return None;
        }
        let name = std::env::var("PG_SIGHT_TEST_USER").unwrap_or_else(|_| "postgres".into());
        let id = |flag| {
            let output = Command::new("id")
                .args([flag, name.as_str()])
                .output()
                .expect("id runs");
            String::from_utf8(output.stdout)
                .expect("a number")
                .trim()
                .parse()
                .unwrap_or_else(|_| {
                    panic!("PostgreSQL refuses to run as root, and there is no user \"{name}\"")
                })
        };
        Some(Self {
            uid: id("-u"),
            gid: id("-g"),
        })
    }
}
