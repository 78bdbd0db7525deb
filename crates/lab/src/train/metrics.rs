//! Lines of metrics, one JSON object each: `{"step":10,"loss":…}` while training, `{"step":250,"validation_loss":…}` at evaluations.

use crate::Error;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// One line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Steps done.
    pub step: u64,
    /// Loss of the last step.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub loss: Option<f32>,
    /// Learning rate of the last step.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rate: Option<f64>,
    /// Length of the gradient of the last step, where it is clipped.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gradient: Option<f32>,
    /// Tokens a second since the line before; the one thing that a second run does not repeat.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tokens_per_s: Option<f64>,
    /// Loss on the validation split.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub validation_loss: Option<f64>,
    /// The task's metric there.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub validation_quality: Option<f64>,
}

/// All lines so far, and the file that they go to.
#[derive(Debug, Default)]
pub struct Metrics {
    lines: Vec<Line>,
    file: Option<(PathBuf, File)>,
}

impl Metrics {
    /// Goes on in a file after its first `kept` bytes; what lies behind them belongs to steps that will be done again.
    ///
    /// # Errors
    /// If the file cannot be opened, is shorter than that, or holds something else.
    pub fn open(path: &Path, kept: u64) -> Result<Self, Error> {
        let refuse = |error| Error::file(path, error);
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).map_err(refuse)?;
        let length = file.metadata().map_err(refuse)?.len();
        if length < kept {
            return Err(Error::data(path, format!("byte {length}"), format!("the file ends here, its checkpoint knows {kept} bytes")));
        }
        file.set_len(kept).map_err(refuse)?;
        file.seek(SeekFrom::End(0)).map_err(refuse)?;
        let text = std::fs::read_to_string(path).map_err(refuse)?;
        let line = |(at, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|error| Error::data(path, format!("line {}", at + 1), error.to_string()))
        };
        let lines = text.lines().enumerate().map(line).collect::<Result<_, _>>()?;
        Ok(Metrics { lines, file: Some((path.into(), file)) })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&mut self, line: Line) -> Result<(), Error> {
        if let Some((path, file)) = &mut self.file {
            let text = serde_json::to_string(&line).map_err(|error| Error::data(&*path, "a new line", error.to_string()))? + "\n";
            file.write_all(text.as_bytes()).map_err(|error| Error::file(&*path, error))?;
        }
        self.lines.push(line);
        Ok(())
    }

    /// Flushes to the disk and says how long the file is.
    ///
    /// # Errors
    /// If that fails.
    pub fn sync(&mut self) -> Result<u64, Error> {
        let Some((path, file)) = &mut self.file else { return Ok(0) };
        file.sync_all().and_then(|()| file.stream_position()).map_err(|error| Error::file(&*path, error))
    }

    /// All lines.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }
}
