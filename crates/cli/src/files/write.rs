//! Writing a file: the header, then the tensors with the widest elements first, so that each starts aligned.

use super::stored::write_values;
use crate::tensor::{Data, Tensor};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};

#[derive(Serialize)]
struct Described<'a> {
    dtype: &'static str,
    shape: &'a [usize],
    data_offsets: [usize; 2],
}

/// Writes named tensors.
pub fn write(tensors: &[(&str, Tensor)], into: &mut impl Write) -> io::Result<()> {
    let mut in_order: Vec<&(&str, Tensor)> = tensors.iter().collect();
    in_order.sort_by_key(|(name, tensor)| (std::cmp::Reverse(element(&tensor.data).1), *name));
    let mut header = BTreeMap::new();
    let mut start = 0;
    for (name, tensor) in &in_order {
        let (dtype, size) = element(&tensor.data);
        let end = start + size * tensor.shape.iter().product::<usize>();
        header.insert(name, Described { dtype, shape: &tensor.shape, data_offsets: [start, end] });
        start = end;
    }
    let mut text = serde_json::to_vec(&header)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    into.write_all(&(text.len() as u64).to_le_bytes())?;
    into.write_all(&text)?;
    in_order.iter().try_for_each(|(_, tensor)| write_data(&tensor.data, into))
}

/// Name and bytes of an element.
fn element(data: &Data) -> (&'static str, usize) {
    match data {
        Data::F32(_) => ("F32", 4),
        Data::Bf16(_) => ("BF16", 2),
        Data::F16(_) => ("F16", 2),
        Data::F64(_) => ("F64", 8),
        Data::I32(_) => ("I32", 4),
        Data::I64(_) => ("I64", 8),
        Data::U8(_) => ("U8", 1),
    }
}

fn write_data(data: &Data, into: &mut impl Write) -> io::Result<()> {
    match data {
        Data::F32(x) => write_values(x, into),
        Data::Bf16(x) => write_values(x, into),
        Data::F16(x) => write_values(x, into),
        Data::F64(x) => write_values(x, into),
        Data::I32(x) => write_values(x, into),
        Data::I64(x) => write_values(x, into),
        Data::U8(x) => write_values(x, into),
    }
}
