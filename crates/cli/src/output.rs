//! Where results go: standard output, and files that appear under their name only when they are complete.

use crate::failure::Failure;
use serde::Serialize;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Mutex, PoisonError};
use std::thread;
use tempfile::{Builder, NamedTempFile};

/// Writes to standard output.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::Closed,
        _ => Failure::Data(format!("cannot write to standard output: {error}")),
    })
}

/// The drafts that were opened. A finished one has another name by then, so nothing is ever taken off.
static DRAFTS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// From now on an interrupt or a request to end removes the drafts before it ends the program.
#[cfg(unix)]
pub fn remove_drafts_when_stopped() -> Result<(), Failure> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])
        .map_err(|error| Failure::Data(format!("cannot listen for interrupts: {error}")))?;
    thread::spawn(move || {
        for signal in signals.forever() {
            // Held until the end, so that no draft is opened any more.
            let drafts = DRAFTS.lock().unwrap_or_else(PoisonError::into_inner);
            drafts.iter().for_each(|draft| _ = fs::remove_file(draft));
            if signal_hook::low_level::emulate_default_handler(signal).is_err() {
                process::abort();
            }
        }
    });
    Ok(())
}

/// Drafts stay behind where there are no such signals.
#[cfg(not(unix))]
pub fn remove_drafts_when_stopped() -> Result<(), Failure> {
    Ok(())
}

/// A file in the making. It lies beside its target and takes the target's name when it is finished; dropped before
/// that, it disappears and the target stays as it was.
pub struct Draft {
    file: NamedTempFile,
    target: PathBuf,
}

impl Draft {
    /// Opens the draft, so that a place that cannot be written to is found before any work is done.
    pub fn beside(target: &Path) -> Result<Self, Failure> {
        let refuse = |reason: String| Failure::Data(format!("cannot write {}: {reason}", target.display()));
        let target = fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
        let existing = fs::metadata(&target).ok();
        if existing.as_ref().is_some_and(|existing| !existing.is_file()) {
            return Err(refuse("it is not a regular file; name a file".into()));
        }
        let folder = match target.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return Err(refuse("it is not a file name".into())),
        };
        let file = listed(folder).map_err(|error| refuse(format!("{}; does the folder exist and may it be written to?", error.kind())))?;
        if let Some(existing) = existing {
            fs::set_permissions(file.path(), existing.permissions()).map_err(|error| refuse(error.to_string()))?;
        }
        Ok(Draft { file, target })
    }

    /// Writes behind what was written so far.
    pub fn add(&self, text: &str) -> Result<(), Failure> {
        let refuse = |error: io::Error| Failure::Data(format!("cannot write {}: {error}", self.target.display()));
        self.file.as_file().write_all(text.as_bytes()).map_err(refuse)
    }

    /// Writes the contents and takes the target's place.
    pub fn finish(self, contents: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>) -> Result<(), Failure> {
        let refuse = |error: io::Error| Failure::Data(format!("cannot write {}: {error}", self.target.display()));
        let mut writer = BufWriter::new(self.file.as_file());
        contents(&mut writer).and_then(|()| writer.flush()).map_err(refuse)?;
        drop(writer);
        self.file.persist(&self.target).map_err(|error| refuse(error.error))?;
        Ok(())
    }
}

/// A new file that is known to whoever cleans up.
fn listed(folder: &Path) -> io::Result<NamedTempFile> {
    let mut drafts = DRAFTS.lock().unwrap_or_else(PoisonError::into_inner);
    let file = new_file(folder)?;
    drafts.push(fs::canonicalize(file.path())?);
    Ok(file)
}

#[cfg(unix)]
fn new_file(folder: &Path) -> io::Result<NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    Builder::new().prefix(".regard-").permissions(fs::Permissions::from_mode(0o666)).tempfile_in(folder)
}

#[cfg(not(unix))]
fn new_file(folder: &Path) -> io::Result<NamedTempFile> {
    Builder::new().prefix(".regard-").tempfile_in(folder)
}

/// Where a verb's JSON goes.
pub enum JsonTarget {
    /// Nobody asked for it.
    Nowhere,
    /// To standard output, where nothing else may then go.
    Stdout,
    /// To a file.
    File(Draft),
}

impl JsonTarget {
    /// Prepares the place that `--json` names.
    pub fn new(argument: Option<&Path>) -> Result<Self, Failure> {
        Ok(match argument {
            None => JsonTarget::Nowhere,
            Some(path) if path.as_os_str() == "-" => JsonTarget::Stdout,
            Some(path) => JsonTarget::File(Draft::beside(path)?),
        })
    }

    /// Whether standard output is free for people.
    pub fn leaves_stdout(&self) -> bool {
        !matches!(self, JsonTarget::Stdout)
    }

    /// Writes the JSON if it is wanted.
    pub fn write(self, value: &impl Serialize) -> Result<(), Failure> {
        let text = || serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|error| Failure::Data(error.to_string()));
        match self {
            JsonTarget::Nowhere => Ok(()),
            JsonTarget::Stdout => print(&text()?),
            JsonTarget::File(draft) => {
                let text = text()?;
                draft.finish(|file| file.write_all(text.as_bytes()))
            }
        }
    }
}
