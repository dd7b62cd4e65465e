//! Names of repositories and revisions, which become parts of paths and URLs.

use crate::error::{HubError, HubErrorKind};

/// The hub's own limit of a repository's name, in bytes.
const MAX_REPOSITORY_BYTES: usize = 96;
const MAX_REVISION_BYTES: usize = 255;
const COMMIT_DIGITS: usize = 40;

/// `owner/name`, or `name` for the hub's oldest repositories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Repository {
    /// Empty without an owner.
    pub(crate) owner: String,
    pub(crate) name: String,
}

impl Repository {
    pub(crate) fn parse(text: &str) -> Result<Self, HubError> {
        let (owner, name) = match text.split_once('/') {
            Some((owner, name)) => (Some(owner), name),
            None => (None, text),
        };
        let is_valid = text.len() <= MAX_REPOSITORY_BYTES
            && owner.into_iter().chain([name]).all(is_repository_part);
        if !is_valid {
            return Err(HubError::new(
                HubErrorKind::Invalid,
                format!("\"{text}\" is not the name of a repository"),
            )
            .detail("A name has letters, digits, \"-\", \"_\" and \".\", and an owner's name before a slash.")
            .hint("Name it as the hub does: sentence-transformers/all-mpnet-base-v2."));
        }
        Ok(Self {
            owner: owner.unwrap_or_default().to_owned(),
            name: name.to_owned(),
        })
    }

    /// The repository's folder in the cache; two hyphens stand for a slash.
    pub(crate) fn folder(&self) -> String {
        if self.owner.is_empty() {
            format!("models--{}", self.name)
        } else {
            format!("models--{}--{}", self.owner, self.name)
        }
    }
}

/// The hub's rule, see `validate_repo_id` of huggingface_hub.
fn is_repository_part(part: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    part.chars().all(|c| is_word(c) || c == '-' || c == '.')
        && part.starts_with(|c: char| is_word(c))
        && part.ends_with(|c: char| is_word(c))
        && !part.contains("--")
        && !part.contains("..")
}

/// Checks a branch, tag or commit by git's rules, as far as they keep it from
/// leaving the cache's folder of references.
pub(crate) fn check_revision(text: &str) -> Result<(), HubError> {
    let is_part = |part: &str| {
        !part.is_empty() && !part.starts_with('.') && !part.chars().any(char::is_control)
    };
    let is_valid = text.len() <= MAX_REVISION_BYTES
        && text.split('/').all(is_part)
        && !text.contains("..")
        && !text.contains([' ', '~', '^', ':', '?', '*', '[', '\\']);
    if is_valid {
        return Ok(());
    }
    Err(HubError::new(
        HubErrorKind::Invalid,
        format!("\"{text}\" is not the name of a revision"),
    )
    .hint("A revision is a branch like main, a tag, or the 40 digits of a commit."))
}

pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == COMMIT_DIGITS && is_hexadecimal(text)
}

/// Only the digits that git and the hub write.
pub(crate) fn is_hexadecimal(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::{Repository, check_revision, is_commit};

    #[test]
    fn repositories_have_the_hubs_names() {
        let folder = |text| Repository::parse(text).map(|repository| repository.folder());
        assert_eq!(
            folder("sentence-transformers/all-MiniLM-L6-v2").unwrap(),
            "models--sentence-transformers--all-MiniLM-L6-v2"
        );
        assert_eq!(folder("gpt2").unwrap(), "models--gpt2");
        let long = format!("a/{}", "b".repeat(95));
        for bad in [
            "", "/", "a/", "/a", "a/b/c", "../b", "a/..", "a/.b", "a/b-", "a--b/c", "a/b c", "a/é",
            "a/b?c", &long,
        ] {
            assert!(folder(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn revisions_stay_in_their_folder() {
        for good in ["main", "refs/pr/1", "v1.0", &"0a".repeat(20)] {
            assert!(check_revision(good).is_ok(), "{good}");
        }
        let long = "a".repeat(256);
        for bad in [
            "", "/", "/etc", "a//b", "..", "a/../b", ".a", "a b", "a\nb", "a\\b", &long,
        ] {
            assert!(check_revision(bad).is_err(), "{bad}");
        }
        assert!(is_commit(&"0a".repeat(20)));
        assert!(!is_commit(&"0A".repeat(20)) && !is_commit("0a"));
    }
}
