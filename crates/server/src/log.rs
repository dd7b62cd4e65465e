//! Log lines on standard error, which the supervisor relays into PostgreSQL's
//! log: `LEVEL: text`, one line for each message. Nothing that clients sent is
//! ever logged.

use std::fmt::{self, Display};
use std::io::Write;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Debug,
    Info,
    Warning,
    Error,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warning => "WARNING",
            Self::Error => "ERROR",
        }
    }
}

pub fn debug(text: impl Display) {
    write(Level::Debug, &text);
}

pub fn info(text: impl Display) {
    write(Level::Info, &text);
}

pub fn warning(text: impl Display) {
    write(Level::Warning, &text);
}

pub fn error(text: impl Display) {
    write(Level::Error, &text);
}

fn write(level: Level, text: &dyn Display) {
    // One write for a line keeps the lines of several threads apart. When
    // nobody reads any more there is nobody to tell.
    let _ = std::io::stderr().write_all(line(level, text).as_bytes());
}

fn line(level: Level, text: &dyn Display) -> String {
    let text = text.to_string().replace(['\r', '\n'], " ");
    format!("{}: {text}\n", level.as_str())
}

/// Makes every panic one line of the log.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        error(PanicLine {
            // A formatted payload may quote what a client sent (slicing a string
            // does); a literal cannot.
            literal: info.payload().downcast_ref::<&'static str>().copied(),
            place: info.location().map(ToString::to_string),
        });
    }));
}

struct PanicLine {
    literal: Option<&'static str>,
    place: Option<String>,
}

impl Display for PanicLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let thread = std::thread::current();
        write!(f, "panic in thread {}", thread.name().unwrap_or("unnamed"))?;
        if let Some(place) = &self.place {
            write!(f, " at {place}")?;
        }
        if let Some(literal) = self.literal {
            write!(f, ": {literal}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Level, PanicLine, line};

    #[test]
    fn a_message_is_one_line() {
        assert_eq!(
            line(Level::Warning, &"first\nsecond\r\nthird"),
            "WARNING: first second  third\n"
        );
    }

    #[test]
    fn a_panic_names_its_place() {
        let text = PanicLine {
            literal: Some("no such thing"),
            place: Some("src/a.rs:1:2".into()),
        }
        .to_string();
        assert!(text.starts_with("panic in thread "), "{text}");
        assert!(text.ends_with("at src/a.rs:1:2: no such thing"), "{text}");
    }
}
