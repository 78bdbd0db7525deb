//! Where a model lies: a folder as Hugging Face writes it, or a name on its hub, looked up in its usual cache first.

use crate::Error;
use hf_hub::api::sync::ApiBuilder;
use std::path::{Path, PathBuf};

/// The three files of a model.
#[derive(Debug, Clone)]
pub struct Folder {
    /// `config.json`.
    pub config: PathBuf,
    /// `model.safetensors`.
    pub weights: PathBuf,
    /// `tokenizer.json`.
    pub tokenizer: PathBuf,
}

const FILES: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

impl Folder {
    /// A folder if there is one of this name, else a model of the hub. Only the latter may use the network, and only for files
    /// that its cache (`HF_HOME`, by default `~/.cache/huggingface`) does not have.
    ///
    /// # Errors
    /// If a file is missing, or the hub cannot be asked or does not know the name.
    pub fn find(name: &str) -> Result<Self, Error> {
        let path = Path::new(name);
        if path.exists() {
            return Self::open(path);
        }
        if !could_be_on_the_hub(name) {
            let message = "there is no such folder, and a name on the hub is OWNER/NAME or NAME".to_owned();
            return Err(Error::Name { name: name.to_owned(), message });
        }
        Self::from_hub(name)
    }

    /// The files in a folder.
    ///
    /// # Errors
    /// If it is not a folder, or one of the three files is not in it.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        if !folder.is_dir() {
            return Err(Error::file(folder, format!("not a folder; name the one that has {}", FILES.join(", "))));
        }
        let [config, weights, tokenizer] = FILES.map(|file| folder.join(file));
        for path in [&config, &weights, &tokenizer] {
            if !path.is_file() {
                return Err(Error::file(path, format!("missing; a model folder has {}", FILES.join(", "))));
            }
        }
        Ok(Folder { config, weights, tokenizer })
    }

    fn from_hub(name: &str) -> Result<Self, Error> {
        let refuse = |message: String| Error::Name { name: name.to_owned(), message };
        let api = ApiBuilder::from_env().with_progress(false).build();
        let model = api.map_err(|error| refuse(format!("the hub cannot be reached: {error}")))?.model(name.to_owned());
        let fetch = |file: &str| {
            let advice = "without a network, name a folder that has config.json, model.safetensors and tokenizer.json";
            let reason = |error| refuse(format!("no such folder here, and the hub did not give {file} ({error}); {advice}"));
            model.get(file).map_err(reason)
        };
        let [config, weights, tokenizer] = FILES;
        Ok(Folder { config: fetch(config)?, tokenizer: fetch(tokenizer)?, weights: fetch(weights)? })
    }
}

fn could_be_on_the_hub(name: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    let plain = |part: &&str| {
        !part.is_empty() && !part.starts_with('.') && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    parts.len() <= 2 && parts.iter().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_not_asked_for_on_the_hub() {
        let names = ["bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2"];
        assert!(names.into_iter().all(could_be_on_the_hub));
        let paths = ["./model", "/tmp/model", "a/b/c", "model/", "..", "", "a b"];
        assert!(!paths.into_iter().any(could_be_on_the_hub));
    }
}
