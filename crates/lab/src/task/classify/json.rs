//! JSON Lines: an object a line, of which two fields are read.

use super::table::{Found, Reading, Row, Table, named};
use crate::Error;
use crate::names::meant;
use crate::task::file::{Places, open};
use crate::task::lines::{Lines, end, utf8};
use serde_json::{Map, Value};
use std::io::BufReader;
use std::path::Path;

/// A file of objects.
pub struct JsonLines {
    file: Places,
    text: String,
    label: String,
    limit: usize,
}

impl JsonLines {
    pub fn open(path: &Path, reading: &Reading) -> Result<Self, Error> {
        let (text, label) = (named(&reading.text, "text")?.to_owned(), named(&reading.label, "label")?.to_owned());
        Ok(JsonLines { file: Places::open(path)?, text, label, limit: reading.line_limit })
    }

    fn object(&self, line: &[u8], place: &dyn Fn() -> String) -> Result<Row, Error> {
        let refuse = |message: String| Error::data(self.file.path(), place(), message);
        let line = utf8(line, self.file.path(), place)?;
        let value: Value = serde_json::from_str(line).map_err(|error| refuse(format!("is not JSON: {error}")))?;
        let Value::Object(object) = value else {
            return Err(refuse("is not a JSON object such as {\"text\": …, \"label\": …}".into()));
        };
        let text = match self.field(&object, &self.text).map_err(refuse)? {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            _ => return Err(refuse(format!("field \"{}\" is not a text", self.text))),
        };
        let label = match self.field(&object, &self.label).map_err(refuse)? {
            Value::String(label) => label.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(label) => label.to_string(),
            _ => return Err(refuse(format!("field \"{}\" is neither a text nor a number", self.label))),
        };
        Ok(Row { text, label })
    }

    fn field<'a>(&self, object: &'a Map<String, Value>, name: &str) -> Result<&'a Value, String> {
        object.get(name).ok_or_else(|| {
            let known = || object.keys().map(String::as_str);
            format!("there is no field \"{name}\"{}; there are {}", meant(name, known()), known().collect::<Vec<_>>().join(", "))
        })
    }
}

impl Table for JsonLines {
    fn scan(&self, visit: &mut dyn FnMut(Found) -> Result<(), Error>) -> Result<(), Error> {
        let reader = BufReader::with_capacity(1 << 16, open(self.file.path())?);
        let mut lines = Lines::new(self.file.path(), reader, self.limit)?;
        while let Some(line) = lines.next()? {
            if line.bytes.trim_ascii().is_empty() {
                continue;
            }
            let place = || format!("line {}", line.number);
            let row = self.object(line.bytes, &place)?;
            visit(Found { at: line.at, place: place(), row })?;
        }
        Ok(())
    }

    fn row(&self, at: u64) -> Result<Row, Error> {
        let mut most = 4096;
        loop {
            let bytes = self.file.read_up_to(at, most)?;
            match bytes.iter().position(|byte| *byte == b'\n') {
                Some(last) => return self.object(end(&bytes[..=last]), &|| format!("byte {at}")),
                None if bytes.len() < most || most > self.limit + 2 => return self.object(end(&bytes), &|| format!("byte {at}")),
                None => most *= 8,
            }
        }
    }

    fn path(&self) -> &Path {
        self.file.path()
    }
}
