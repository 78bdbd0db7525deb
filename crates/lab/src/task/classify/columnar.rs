//! Apache Parquet: two columns of it, unpacked once to a temporary file, because rows of a compressed page cannot be found by a byte.

use super::table::{Found, Reading, Row, Table, named};
use crate::Error;
use crate::names::meant;
use crate::task::delimited::Column;
use crate::task::file::{Places, Spill, open};
use parquet::basic::{Compression, Repetition};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::{Type, TypePtr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows of a temporary file: lengths of text and label as u32, then both.
pub struct Unpacked {
    source: PathBuf,
    rows: Places,
    bytes: u64,
}

/// Reads all rows of a file.
pub fn unpack(path: &Path, reading: &Reading) -> Result<Unpacked, Error> {
    let wrong = |error: ParquetError| Error::data(path, "file", format!("is not a sound Parquet file: {error}"));
    let reader = SerializedFileReader::new(open(path)?).map_err(wrong)?;
    let schema = reader.metadata().file_metadata().schema();
    check(path, reader.metadata())?;
    let names = [field(path, schema, (&reading.text, "text"))?, field(path, schema, (&reading.label, "label"))?];
    let rows = reader.get_row_iter(Some(project(schema, &names).map_err(wrong)?)).map_err(wrong)?;
    let mut spill = Spill::new()?;
    for (number, row) in rows.enumerate() {
        let row = row.map_err(wrong)?;
        let place = format!("row {}", number + 1);
        let [text, label] = names.map(|name| {
            let value = row.get_column_iter().find(|(column, _)| *column == name).map(|(_, value)| value);
            value.and_then(plain).ok_or_else(|| Error::data(path, &place, format!("column {name} is neither a text nor a whole number")))
        });
        let row = Row { text: text?, label: label? };
        if row.text.len() + row.label.len() > reading.line_limit {
            let message = format!("is longer than {} bytes; line_limit sets another limit", reading.line_limit);
            return Err(Error::data(path, &place, message));
        }
        spill.write(&(row.text.len() as u32).to_le_bytes())?;
        spill.write(&(row.label.len() as u32).to_le_bytes())?;
        spill.write(row.text.as_bytes())?;
        spill.write(row.label.as_bytes())?;
    }
    let bytes = spill.written();
    Ok(Unpacked { source: path.into(), rows: spill.finish()?, bytes })
}

/// What the reader of pages takes for granted: chunks that lie somewhere, and compression that is built in.
fn check(path: &Path, file: &ParquetMetaData) -> Result<(), Error> {
    for chunk in file.row_groups().iter().flat_map(RowGroupMetaData::columns) {
        let first = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
        if first < 0 || chunk.compressed_size() < 0 || chunk.num_values() < 0 {
            return Err(Error::data(path, "file", "is not a sound Parquet file: a column lies before its beginning"));
        }
        match chunk.compression() {
            Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_) | Compression::ZSTD(_) => {}
            other => {
                let name = other.to_string();
                let name = name.split('(').next().unwrap_or(&name);
                let message = format!("compression {name} is not built in; write the file with snappy, zstd, gzip or no compression");
                return Err(Error::data(path, format!("column {}", chunk.column_path()), message));
            }
        }
    }
    Ok(())
}

/// The name of a column that there is.
fn field<'a>(path: &Path, schema: &Type, (column, key): (&'a Column, &str)) -> Result<&'a str, Error> {
    let name = named(column, key)?;
    let known: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
    let message = match schema.get_fields().iter().find(|field| field.name() == name) {
        Some(field) if field.is_primitive() && field.get_basic_info().repetition() != Repetition::REPEATED => return Ok(name),
        Some(_) => format!("column \"{name}\" holds lists or groups, a text or a whole number was expected"),
        None => format!("there is no column \"{name}\"{}; there are {}", meant(name, known.iter().copied()), known.join(", ")),
    };
    Err(Error::data(path, "schema", message))
}

/// The schema of some columns alone.
fn project(schema: &Type, names: &[&str]) -> Result<Type, ParquetError> {
    let fields: Vec<TypePtr> = schema.get_fields().iter().filter(|field| names.contains(&field.name())).map(Arc::clone).collect();
    Type::group_type_builder(schema.name()).with_fields(fields).build()
}

fn plain(value: &Field) -> Option<String> {
    match value {
        Field::Null => Some(String::new()),
        Field::Str(text) => Some(text.clone()),
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data()).ok().map(str::to_owned),
        Field::Bool(flag) => Some(flag.to_string()),
        Field::Byte(_) | Field::Short(_) | Field::Int(_) | Field::Long(_) => Some(value.to_string()),
        Field::UByte(_) | Field::UShort(_) | Field::UInt(_) | Field::ULong(_) => Some(value.to_string()),
        _ => None,
    }
}

impl Unpacked {
    fn read(&self, at: u64) -> Result<(Row, u64), Error> {
        let sizes = self.rows.read(at, 8)?;
        let (texts, labels) = sizes.split_at(4);
        let size = |bytes: &[u8]| bytes.iter().rev().fold(0usize, |size, byte| size << 8 | usize::from(*byte));
        let (text, label) = (size(texts), size(labels));
        let bytes = self.rows.read(at + 8, text + label)?;
        let (text, label) = bytes.split_at(text);
        let row = Row { text: String::from_utf8_lossy(text).into(), label: String::from_utf8_lossy(label).into() };
        Ok((row, at + 8 + bytes.len() as u64))
    }
}

impl Table for Unpacked {
    fn scan(&self, visit: &mut dyn FnMut(Found) -> Result<(), Error>) -> Result<(), Error> {
        let (mut at, mut number) = (0, 0u64);
        while at < self.bytes {
            let (row, next) = self.read(at)?;
            number += 1;
            visit(Found { at, place: format!("row {number}"), row })?;
            at = next;
        }
        Ok(())
    }

    fn row(&self, at: u64) -> Result<Row, Error> {
        self.read(at).map(|(row, _)| row)
    }

    fn path(&self) -> &Path {
        &self.source
    }
}
