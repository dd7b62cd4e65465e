//! A cheap look at the files of a model: have they changed since it was loaded?

use std::fs;
use std::io;
use std::path::Path;
use std::time::UNIX_EPOCH;

use sight_protocol::{ErrorCode, ErrorReply, ModelRef};

use crate::error;

/// Folders below the model's own that are looked into (`1_Pooling` and the
/// like).
const DEPTH: usize = 1;

/// Names, sizes and times of the files of a model, which changes when one of
/// them does. Reads no contents.
///
/// # Errors
/// The directory is missing or cannot be read.
pub fn fingerprint(model: &ModelRef) -> Result<String, ErrorReply> {
    let directory = Path::new(&model.directory);
    let mut files = Vec::new();
    collect(directory, DEPTH, &mut files).map_err(|cause| unreadable(model, &cause))?;
    files.sort();
    Ok(files.join("\n"))
}

fn collect(directory: &Path, depth: usize, files: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        // Follows links: the hub's cache consists of them.
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            // Gone since, or a link to nowhere: no file of the model.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if metadata.is_dir() {
            if depth > 0 {
                collect(&path, depth - 1, files)?;
            }
            continue;
        }
        let modified = metadata
            .modified()?
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        files.push(format!(
            "{} {} {}",
            path.display(),
            metadata.len(),
            modified.as_nanos()
        ));
    }
    Ok(())
}

fn unreadable(model: &ModelRef, cause: &io::Error) -> ErrorReply {
    let ModelRef {
        name, directory, ..
    } = model;
    let message = if cause.kind() == io::ErrorKind::NotFound {
        format!("directory of model \"{name}\" does not exist")
    } else {
        format!("directory of model \"{name}\" cannot be read: {cause}")
    };
    ErrorReply {
        detail: Some(format!("The directory is \"{directory}\".")),
        hint: Some("Register the model with the directory that holds its files, which the server's user must be able to read.".into()),
        ..error::reply(ErrorCode::ModelMissing, message)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use sight_protocol::{ErrorCode, Limits, ModelRef};

    use super::fingerprint;

    fn model(directory: &std::path::Path) -> ModelRef {
        ModelRef {
            name: "m".into(),
            directory: directory.display().to_string(),
            limits: Limits {
                max_text_bytes: 1,
                max_image_bytes: 1,
                max_image_pixels: 1,
            },
        }
    }

    #[test]
    fn it_changes_with_any_file() {
        let directory = tempfile::tempdir().unwrap();
        let model = model(directory.path());
        let empty = fingerprint(&model).unwrap();
        fs::write(directory.path().join("config.json"), "{}").unwrap();
        let one = fingerprint(&model).unwrap();
        assert_ne!(empty, one);
        assert_eq!(one, fingerprint(&model).unwrap());
        fs::create_dir(directory.path().join("1_Pooling")).unwrap();
        fs::write(directory.path().join("1_Pooling/config.json"), "{}").unwrap();
        let two = fingerprint(&model).unwrap();
        assert_ne!(one, two);
        fs::write(directory.path().join("1_Pooling/config.json"), "{ }").unwrap();
        assert_ne!(two, fingerprint(&model).unwrap());
    }

    #[test]
    fn a_missing_directory_is_a_missing_model() {
        let directory = tempfile::tempdir().unwrap();
        let error = fingerprint(&model(&directory.path().join("none"))).unwrap_err();
        assert_eq!(error.code, ErrorCode::ModelMissing);
        assert!(error.detail.unwrap().contains("none"));
    }
}
