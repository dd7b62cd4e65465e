//! Errors of downloads.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

use hf_hub::HFError;

use crate::config::shown_url;

/// Kinds of errors of a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HubErrorKind {
    /// A repository, revision or setting that cannot be one.
    Invalid,
    /// The network may not be used, and the cache does not hold the model.
    Offline,
    /// The hub refused, failed, or sent something else than it announced.
    Download,
    /// The cache cannot be written.
    Storage,
}

/// An error in PostgreSQL's style: message in lower case without a full stop,
/// detail and hint as sentences. It never holds the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubError {
    pub kind: HubErrorKind,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl fmt::Display for HubError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl Error for HubError {}

const TOKEN_HINT: &str = "A private or gated repository needs a token of an account that may read \
    it, in HF_TOKEN of PostgreSQL's environment; the terms of a gated one are accepted on its page.";

impl HubError {
    pub(crate) fn new(kind: HubErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A file or folder of the cache that cannot be used.
    pub(crate) fn storage(path: &Path, error: &io::Error) -> Self {
        Self::new(
            HubErrorKind::Storage,
            format!("could not use \"{}\" for a download", path.display()),
        )
        .detail(format!("The system says: {error}."))
        .hint(
            "Downloads lie below pg_sight.hf_home, or HF_HOME of PostgreSQL's environment; \
             PostgreSQL's user must be able to write there.",
        )
    }

    /// The hub sent nothing for too long.
    pub(crate) fn silent(what: &str, seconds: u64) -> Self {
        Self::new(HubErrorKind::Download, format!("could not download {what}"))
            .detail(format!("The hub sent nothing for {seconds} seconds."))
            .hint("Try again later: the download goes on from where it is.")
    }

    /// An error of the hub's client, while it was asked for `what`.
    pub(crate) fn from_client(what: &str, error: HFError) -> Self {
        let failed = Self::new(HubErrorKind::Download, format!("could not download {what}"));
        let (context, hint) = match error {
            HFError::AuthRequired { context } | HFError::Forbidden { context } => {
                // The hub answers so for repositories that do not exist, too.
                (context, format!("Check the name. {TOKEN_HINT}"))
            }
            HFError::RepoNotFound {
                context: Some(context),
                ..
            }
            | HFError::RevisionNotFound {
                context: Some(context),
                ..
            }
            | HFError::EntryNotFound {
                context: Some(context),
                ..
            } => (
                context,
                format!("Check the names of repository and revision. {TOKEN_HINT}"),
            ),
            HFError::RateLimited { context, .. } => (context, "Try again later.".to_owned()),
            HFError::Http { context } | HFError::Conflict { context } => (
                context,
                "Try again later: the hub has trouble of its own.".to_owned(),
            ),
            HFError::Request { source, url } => {
                let url = url.map_or_else(|| "The hub".to_owned(), |url| shown_url(&url));
                let cause = chain(&source.without_url());
                return failed
                    .detail(format!("{url}: {cause}."))
                    .hint("Check that the database's host reaches the hub; HF_ENDPOINT or pg_sight.hf_endpoint names another one, HTTPS_PROXY a proxy.");
            }
            HFError::Io(error) => return failed.detail(format!("The system says: {error}.")),
            other => {
                return failed
                    .detail(format!(
                        "The hub's answer was not understood: {}.",
                        chain(&other)
                    ))
                    .hint("Check that pg_sight.hf_endpoint or HF_ENDPOINT names a hub.");
            }
        };
        let mut detail = format!(
            "{} was answered with HTTP status {}",
            shown_url(&context.url),
            context.status
        );
        if let Some(said) = context.server_message.filter(|said| !said.is_empty()) {
            detail.push_str(": ");
            detail.push_str(said.trim_end_matches('.'));
        }
        detail.push('.');
        failed.detail(detail).hint(hint)
    }

    /// The same error without the token, should a hub send that back.
    pub(crate) fn without(mut self, token: Option<&str>) -> Self {
        let Some(token) = token.filter(|token| !token.is_empty()) else {
            return self;
        };
        let fields = [
            Some(&mut self.message),
            self.detail.as_mut(),
            self.hint.as_mut(),
        ];
        for text in fields.into_iter().flatten() {
            *text = text.replace(token, "***");
        }
        self
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{HubError, HubErrorKind};

    #[test]
    fn a_token_that_comes_back_is_hidden() {
        let error = HubError::new(HubErrorKind::Download, "no entry for hf_secret")
            .detail("hf_secret is unknown")
            .hint("not hf_secret")
            .without(Some("hf_secret"));
        let all = format!("{error:?}");
        assert!(!all.contains("hf_secret"), "{all}");
        assert_eq!(error.message, "no entry for ***");
    }
}
