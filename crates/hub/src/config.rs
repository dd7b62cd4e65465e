//! Which hub, which cache, which token: settings first, then the variables of
//! Hugging Face's own tools.

use std::path::{Path, PathBuf};

use crate::error::{HubError, HubErrorKind};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// A hub and the cache for what comes from it.
#[derive(Clone)]
pub struct HubConfig {
    /// URL without a slash at its end.
    pub(crate) endpoint: String,
    /// Directory of the cache, `hub` in Hugging Face's home.
    pub(crate) cache: PathBuf,
    pub(crate) token: Option<String>,
    pub(crate) offline: bool,
}

impl HubConfig {
    /// `endpoint` and `home` stand for HF_ENDPOINT and HF_HOME where they are
    /// given; the rest comes from `variable`, which looks into the environment.
    ///
    /// # Errors
    /// No directory is known for the cache, or one that is not absolute; an
    /// endpoint that is no URL.
    pub fn new(
        endpoint: Option<&str>,
        home: Option<&Path>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, HubError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let endpoint = endpoint
            .map(str::to_owned)
            .or_else(|| variable("HF_ENDPOINT"))
            .unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(HubError::new(
                HubErrorKind::Invalid,
                format!("\"{}\" is not the URL of a hub", shown_url(&endpoint)),
            )
            .hint(
                "Set pg_sight.hf_endpoint or HF_ENDPOINT to a URL like https://huggingface.co.",
            ));
        }
        let cache = cache_directory(home, &variable)?;
        let home = home.map(Path::to_owned).or_else(|| default_home(&variable));
        Ok(Self {
            endpoint,
            cache,
            token: token(home.as_deref(), &variable),
            offline: variable("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
        })
    }
}

/// As Hugging Face's tools read their switches.
fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"]
        .iter()
        .any(|yes| value.eq_ignore_ascii_case(yes))
}

fn default_home(variable: &impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    variable("HF_HOME")
        .map(PathBuf::from)
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| Path::new(&cache).join("huggingface")))
        .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache/huggingface")))
}

fn cache_directory(
    home: Option<&Path>,
    variable: &impl Fn(&str) -> Option<String>,
) -> Result<PathBuf, HubError> {
    let cache = match home {
        Some(home) => Some(home.join("hub")),
        None => variable("HF_HUB_CACHE")
            .or_else(|| variable("HUGGINGFACE_HUB_CACHE"))
            .map(PathBuf::from)
            .or_else(|| default_home(variable).map(|home| home.join("hub"))),
    };
    let hint = "Set pg_sight.hf_home to an absolute path, or HF_HOME in PostgreSQL's environment.";
    match cache {
        Some(cache) if cache.is_absolute() => Ok(cache),
        Some(cache) => Err(HubError::new(
            HubErrorKind::Invalid,
            format!(
                "directory for downloads \"{}\" is not an absolute path",
                cache.display()
            ),
        )
        .hint(hint)),
        None => Err(
            HubError::new(HubErrorKind::Invalid, "no directory is known for downloads")
                .detail("Neither pg_sight.hf_home nor HF_HOME nor HOME is set.")
                .hint(hint),
        ),
    }
}

/// HF_TOKEN, the file of HF_TOKEN_PATH, or the file `token` of the home, where
/// Hugging Face's `login` puts it; at last that of the environment's home, where
/// hf-hub would find it by itself, and messages would not hide what they do not know.
fn token(home: Option<&Path>, variable: &impl Fn(&str) -> Option<String>) -> Option<String> {
    if variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|value| is_true(&value)) {
        return None;
    }
    let trimmed = |text: String| {
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    };
    let file = |path: PathBuf| std::fs::read_to_string(path).ok().and_then(trimmed);
    variable("HF_TOKEN")
        .and_then(trimmed)
        .or_else(|| variable("HF_TOKEN_PATH").and_then(|path| file(path.into())))
        .or_else(|| home.and_then(|home| file(home.join("token"))))
        .or_else(|| default_home(variable).and_then(|home| file(home.join("token"))))
}

/// A URL as messages may show it: without a user, a password or a query, which
/// may hold a signature.
pub(crate) fn shown_url(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{HubConfig, shown_url};
    use crate::HubErrorKind;

    fn config(
        endpoint: Option<&str>,
        home: Option<&str>,
        environment: &[(&str, &str)],
    ) -> Result<HubConfig, HubErrorKind> {
        let variable = |name: &str| {
            let found = environment.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        HubConfig::new(endpoint, home.map(Path::new), variable).map_err(|error| error.kind)
    }

    #[test]
    fn settings_go_before_the_environment() {
        let environment = [
            ("HF_HOME", "/env"),
            ("HF_ENDPOINT", "https://mirror/"),
            ("HF_TOKEN", " hf_x\n"),
        ];
        let from_environment = config(None, None, &environment).unwrap();
        assert_eq!(from_environment.endpoint, "https://mirror");
        assert_eq!(from_environment.cache, Path::new("/env/hub"));
        assert_eq!(from_environment.token.as_deref(), Some("hf_x"));
        assert!(!from_environment.offline);
        let set = config(Some("http://mine"), Some("/mine"), &environment).unwrap();
        assert_eq!(
            (set.endpoint.as_str(), set.cache.as_path()),
            ("http://mine", Path::new("/mine/hub"))
        );
    }

    #[test]
    fn the_cache_follows_hugging_faces_variables() {
        let cache = |environment: &[(&str, &str)]| {
            let config = config(None, None, environment);
            config.map(|config| config.cache.display().to_string())
        };
        assert_eq!(
            cache(&[("HOME", "/h")]).unwrap(),
            "/h/.cache/huggingface/hub"
        );
        assert_eq!(
            cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).unwrap(),
            "/x/huggingface/hub"
        );
        assert_eq!(
            cache(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]).unwrap(),
            "/c"
        );
        // A variable that is set to nothing is not set.
        assert_eq!(
            cache(&[("HF_HOME", ""), ("HOME", "/h")]).unwrap(),
            "/h/.cache/huggingface/hub"
        );
        assert_eq!(cache(&[]), Err(HubErrorKind::Invalid));
        assert_eq!(cache(&[("HF_HOME", "f")]), Err(HubErrorKind::Invalid));
    }

    #[test]
    fn switches_and_bad_endpoints() {
        for (value, offline) in [("1", true), ("True", true), ("0", false), ("", false)] {
            let environment = [("HOME", "/h"), ("HF_HUB_OFFLINE", value)];
            assert_eq!(config(None, None, &environment).unwrap().offline, offline);
        }
        let home = [("HOME", "/h")];
        assert!(config(Some("ftp://hub"), None, &home).is_err());
        assert!(config(Some("hub"), None, &home).is_err());
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let home = folder.path().to_str();
        let of_file = config(None, home, &[]).unwrap();
        assert_eq!(of_file.token.as_deref(), Some("hf_file"));
        let other = tempfile::tempdir().unwrap();
        let elsewhere = config(None, other.path().to_str(), &[("HF_HOME", home.unwrap())]);
        assert_eq!(elsewhere.unwrap().token.as_deref(), Some("hf_file"));
        let without = [("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")];
        assert_eq!(config(None, home, &without).unwrap().token, None);
    }

    #[test]
    fn urls_are_shown_without_secrets() {
        assert_eq!(
            shown_url("https://user:pw@hub.example/a/b?X-Signature=s#f"),
            "https://hub.example/a/b"
        );
        assert_eq!(shown_url("http://h:80"), "http://h:80");
        assert_eq!(shown_url("not a url?x"), "not a url");
    }
}
