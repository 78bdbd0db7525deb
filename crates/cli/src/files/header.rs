//! The header of a file: what it says, and whether that can be true.

use serde::de::{Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// Names and bits per element of the dtypes that files may hold.
const DTYPES: [(&str, u64); 22] = [
    ("BOOL", 8),
    ("U8", 8),
    ("I8", 8),
    ("F8_E4M3", 8),
    ("F8_E5M2", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("I16", 16),
    ("U16", 16),
    ("F16", 16),
    ("BF16", 16),
    ("I32", 32),
    ("U32", 32),
    ("F32", 32),
    ("C64", 64),
    ("I64", 64),
    ("U64", 64),
    ("F64", 64),
];

/// One tensor of a file.
#[derive(Debug)]
pub struct Entry {
    /// As written: `F32`, `BF16`, …
    pub dtype: String,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Its bytes, counted from the start of the data.
    pub bytes: Range<u64>,
}

/// Reads a header whose data has `length` bytes. The message names the tensor and the numbers.
pub fn parse(text: &[u8], length: u64) -> Result<BTreeMap<String, Entry>, String> {
    if text.first() != Some(&b'{') {
        return Err("the header does not begin with {; is this a safetensors file?".into());
    }
    let header: Header = serde_json::from_slice(text).map_err(|error| format!("the header is not valid: {error}"))?;
    let mut entries = BTreeMap::new();
    for (name, written) in header.0 {
        let entry = written.checked(length).map_err(|message| format!("tensor {name:?}: {message}"))?;
        entries.insert(name, entry);
    }
    check_tiling(&entries, length)?;
    Ok(entries)
}

/// Tensors with their names, in the order of the file.
struct Header(Vec<(String, Written)>);

/// A tensor as the header describes it.
#[derive(Deserialize)]
struct Written {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl Written {
    fn checked(self, length: u64) -> Result<Entry, String> {
        let Written { dtype, shape, data_offsets: [start, end] } = self;
        let bits = DTYPES.iter().find_map(|&(name, bits)| (name == dtype).then_some(bits));
        let bits = bits.ok_or_else(|| format!("unknown dtype {dtype:?}; convert it to one such as F32"))?;
        let sizes = elements(&shape).and_then(|elements| elements.checked_mul(bits));
        let sizes = sizes.ok_or_else(|| format!("shape {shape:?} of {dtype} overflows; its header is forged or damaged"))?;
        if start > end || end > length {
            return Err(format!(
                "bytes {start}..{end} are outside the {length} bytes of data; the file is truncated or damaged, write it again"
            ));
        }
        if sizes % 8 != 0 || sizes / 8 != end - start {
            let found = end - start;
            return Err(format!("shape {shape:?} of {dtype} takes {} bytes, its offsets span {found}; write the file again", sizes / 8));
        }
        Ok(Entry { dtype, shape: shape.into_iter().map(|size| size as usize).collect(), bytes: start..end })
    }
}

/// The product of a shape's sizes, if even without its zeros it fits an address.
fn elements(shape: &[u64]) -> Option<u64> {
    let limit = |product: u64| (product <= isize::MAX as u64).then_some(product);
    let extent = shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size.max(1)).and_then(limit))?;
    Some(if shape.contains(&0) { 0 } else { extent })
}

/// The tensors cover the data from its first to its last byte, each byte once.
fn check_tiling(entries: &BTreeMap<String, Entry>, length: u64) -> Result<(), String> {
    let mut in_order: Vec<(&String, &Range<u64>)> = entries.iter().map(|(name, entry)| (name, &entry.bytes)).collect();
    in_order.sort_by_key(|(_, bytes)| (bytes.start, bytes.end));
    let mut covered = 0;
    for (name, bytes) in in_order {
        if bytes.start != covered {
            let problem = if bytes.start < covered { "overlap the tensor before" } else { "leave a hole before them" };
            return Err(format!(
                "tensor {name:?}: bytes {}..{} {problem}, which ends at {covered}; write the file again",
                bytes.start, bytes.end
            ));
        }
        covered = bytes.end;
    }
    if covered != length {
        return Err(format!("the tensors end at byte {covered} of the data, which has {length}; write the file again"));
    }
    Ok(())
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Tensors)
    }
}

struct Tensors;

impl<'de> Visitor<'de> for Tensors {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object that describes tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let (mut tensors, mut seen) = (Vec::new(), std::collections::HashSet::new());
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("the name {name:?} stands twice; each tensor needs a name of its own")));
            }
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let written = map.next_value().map_err(|error| A::Error::custom(format!("tensor {name:?}: {error}")))?;
            tensors.push((name, written));
        }
        Ok(Header(tensors))
    }
}
