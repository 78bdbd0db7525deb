//! Files larger than what may be in memory: the most bytes ever allocated are counted while tasks over 64 MB each are opened and read.
//! The allocator is of the whole test program, so there is one test in it.

mod common;

use cap::Cap;
use common::{example, open};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use regard_lab::task::Split;
use std::alloc::System;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

const ROWS: usize = 64_000;
/// An index of 8 bytes a row, twice while it grows, and buffers.
const MOST: usize = 2 << 20;
/// Pages of Parquet, and a row group of 4 MB while the test writes it.
const PARQUET: usize = 16 << 20;

fn write(path: &Path, row: impl Fn(usize) -> String) {
    let mut file = BufWriter::new(File::create(path).expect("it is made"));
    (0..ROWS).for_each(|at| file.write_all(row(at).as_bytes()).expect("it is written"));
    file.flush().expect("it is written");
    assert!(std::fs::metadata(path).expect("it is there").len() > 64_000_000, "{}", path.display());
}

/// A thousand characters that differ from row to row.
fn text(at: usize) -> String {
    format!("{at} word {:0990}", at * 7919)
}

fn parquet(path: &Path) {
    let schema = parse_message_type("message rows { required binary text (UTF8); required int64 label; }").expect("a schema");
    let properties = WriterProperties::builder().set_dictionary_enabled(false).build();
    let mut file =
        SerializedFileWriter::new(File::create(path).expect("it is made"), Arc::new(schema), Arc::new(properties)).expect("a file");
    for first in (0..ROWS).step_by(4000) {
        let mut group = file.next_row_group().expect("a group");
        let mut column = group.next_column().expect("no error").expect("text");
        let texts: Vec<ByteArray> = (first..first + 4000).map(|at| text(at).into_bytes().into()).collect();
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).expect("it is written");
        column.close().expect("it is closed");
        let mut column = group.next_column().expect("no error").expect("label");
        let labels: Vec<i64> = (first..first + 4000).map(|at| at as i64 % 2).collect();
        column.typed::<Int64Type>().write_batch(&labels, None, None).expect("it is written");
        column.close().expect("it is closed");
        group.close().expect("it is closed");
    }
    file.close().expect("it is closed");
}

#[test]
fn memory_does_not_grow_with_files() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    write(&at("a.tsv"), |at| format!("{}\t{}\n", at % 2, text(at)));
    write(&at("a.csv"), |at| format!("{}\"{}\"\n", if at == 0 { "label,text\n0," } else { ["0,", "1,"][at % 2] }, text(at)));
    write(&at("a.jsonl"), |at| format!("{{\"label\": {}, \"text\": \"{}\"}}\n", at % 2, text(at)));
    write(&at("numbers.csv"), |at| format!("{}{}\n", if at == 0 { "a,b\n" } else { "" }, vec![format!("{:0504}", at % 97); 2].join(",")));
    write(&at("text.txt"), |at| text(at) + " \n");
    write(&at("line.txt"), |at| text(at) + "  ");
    let before = MEMORY.max_allocated();
    assert!(before < MOST, "writing files took {before} bytes");
    for yaml in [
        "{name: classify, train: a.tsv, text: 2, label: 1}",
        "{name: classify, train: a.csv}",
        "{name: classify, train: a.jsonl}",
        "{name: forecast, file: numbers.csv}",
        "{name: language, train: text.txt}",
        "{name: language, train: text.txt, tokens: chars}",
        "{name: language, train: line.txt, tokens: chars}",
    ] {
        read(folder.path(), yaml);
        let most = MEMORY.max_allocated();
        assert!(most < MOST, "{yaml}: {most} bytes");
    }
    parquet(&at("a.parquet"));
    read(folder.path(), "{name: classify, train: a.parquet}");
    let most = MEMORY.max_allocated();
    assert!(most < PARQUET, "{most} bytes");
}

fn read(folder: &Path, yaml: &str) {
    let task = open(folder, yaml);
    for split in Split::ALL {
        let size = task.facts().sizes[split as usize].expect("it ends");
        (0..200).for_each(|step| drop(example(&*task, split, step * (size - 1) / 199)));
    }
    println!("{yaml}: {} bytes in use, at most {} so far", MEMORY.allocated(), MEMORY.max_allocated());
}
