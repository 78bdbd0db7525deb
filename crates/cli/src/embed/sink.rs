//! Where vectors go: lines of JSON as they are made, or a file that appears when it is complete.

use crate::failure::Failure;
use crate::files;
use crate::output::{self, Draft};
use crate::tensor::{Data, Tensor, Values};
use regard_models::Tokens;
use serde::Serialize;
use std::io::Write;
use std::path::Path;

/// One text as a line.
#[derive(Serialize)]
struct Line<'a> {
    index: usize,
    tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    ids: Option<&'a [u32]>,
    embedding: &'a [f32],
}

/// Takes vectors in the order of the texts.
pub struct Sink {
    place: Place,
    ids: bool,
    texts: usize,
}

enum Place {
    Stdout,
    Lines(Draft, Vec<u8>),
    Tensor(Draft, Vec<f32>),
}

impl Sink {
    /// Prepares the place, so that one that cannot be written to is found before any work is done.
    pub fn new(path: Option<&Path>, ids: bool) -> Result<Self, Failure> {
        let place = match path {
            None => Place::Stdout,
            Some(path) if path.as_os_str() == "-" => Place::Stdout,
            Some(path) if path.extension().is_some_and(|extension| extension == "safetensors") => {
                if ids {
                    return Err(Failure::Usage("--ids go into JSON lines; a safetensors file has embeddings only".into()));
                }
                Place::Tensor(Draft::beside(path)?, Vec::new())
            }
            Some(path) => Place::Lines(Draft::beside(path)?, Vec::new()),
        };
        Ok(Sink { place, ids, texts: 0 })
    }

    /// Takes some texts with their vectors, `width` floats each.
    pub fn take(&mut self, tokens: &[Tokens], vectors: &[f32], width: usize) -> Result<(), Failure> {
        let first = self.texts;
        self.texts += tokens.len();
        if let Place::Tensor(_, all) = &mut self.place {
            all.extend_from_slice(vectors);
            return Ok(());
        }
        let mut text = Vec::new();
        for (i, (tokens, embedding)) in tokens.iter().zip(vectors.chunks_exact(width)).enumerate() {
            let ids = self.ids.then_some(&tokens.ids[..]);
            let line = Line { index: first + i, tokens: tokens.ids.len(), ids, embedding };
            serde_json::to_writer(&mut text, &line).map_err(|error| Failure::Data(error.to_string()))?;
            text.push(b'\n');
        }
        match &mut self.place {
            Place::Lines(_, all) => all.append(&mut text),
            _ => output::print(&String::from_utf8_lossy(&text))?,
        }
        Ok(())
    }

    /// Puts a file in its place.
    pub fn finish(self, width: usize) -> Result<(), Failure> {
        match self.place {
            Place::Stdout => Ok(()),
            Place::Lines(draft, text) => draft.finish(|file| file.write_all(&text)),
            Place::Tensor(draft, values) => {
                let mut data = Values::zeros(values.len());
                data.copy_from_slice(&values);
                let tensor = Tensor { shape: vec![self.texts, width], data: Data::F32(data) };
                draft.finish(|file| files::write(&[("embeddings", tensor)], file))
            }
        }
    }
}
