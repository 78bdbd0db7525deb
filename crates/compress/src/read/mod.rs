//! What models make of a text: how much each of its pieces is looked at, or how little it was expected, and perhaps a vector of each.
//!
//! A model reads chunks of a limited length. Chunks overlap, and what is said of a piece is taken from the chunk in which it lies farthest from an edge;
//! for a model that reads in one direction, from the chunk that shows more of what came before.

mod encoder;
mod pieces;
mod run;

pub use encoder::EncoderReader;
pub use pieces::{Pieces, Splitter};
pub use run::RunReader;

use crate::Error;
use std::ops::Range;

/// What a model made of a chunk.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// One number for each piece.
    pub weights: Vec<f32>,
    /// `[pieces, width]`, where vectors were asked for and the model has any.
    pub vectors: Vec<f32>,
}

/// A model that reads.
pub trait Reader: Send + Sync {
    /// What makes its pieces.
    fn splitter(&self) -> &Splitter;

    /// The most pieces of a chunk.
    fn room(&self) -> usize;

    /// Whether its numbers say how little a piece was expected from those before it; else they say how much it is looked at from both sides.
    fn is_causal(&self) -> bool;

    /// Numbers of vectors.
    fn width(&self) -> usize;

    /// Reads chunks, each up to [`Reader::room`] pieces.
    ///
    /// # Errors
    /// If the model refuses them.
    fn read(&self, chunks: &[&[u32]], vectors: bool) -> Result<Vec<Reading>, Error>;
}

/// Pieces that are read together; a language model answers each with a number for every token that it knows.
const TOGETHER: usize = 1 << 11;

/// Reads pieces of any number.
pub(crate) fn read(reader: &dyn Reader, ids: &[u32], vectors: bool) -> Result<Reading, Error> {
    let width = if vectors { reader.width() } else { 0 };
    let mut whole = Reading { weights: Vec::with_capacity(ids.len()), vectors: Vec::with_capacity(ids.len() * width) };
    let chunks = chunks(ids.len(), reader.room(), reader.is_causal());
    for some in chunks.chunks((TOGETHER / reader.room()).max(1)) {
        let shown: Vec<&[u32]> = some.iter().map(|chunk| &ids[chunk.shown.clone()]).collect();
        for (chunk, reading) in some.iter().zip(reader.read(&shown, vectors)?) {
            let own = chunk.own.start - chunk.shown.start..chunk.own.end - chunk.shown.start;
            whole.weights.extend_from_slice(&reading.weights[own.clone()]);
            whole.vectors.extend_from_slice(&reading.vectors[own.start * width..own.end * width]);
        }
    }
    Ok(whole)
}

/// What is shown to a model, and for which pieces of it its word is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chunk {
    shown: Range<usize>,
    own: Range<usize>,
}

/// Chunks whose own pieces are `0..count`, each once. The last one is as long as the others where there are enough pieces.
fn chunks(count: usize, room: usize, causal: bool) -> Vec<Chunk> {
    let overlap = if causal { room / 4 } else { room / 16 };
    let behind = if causal { 0 } else { overlap / 2 };
    let (mut chunks, mut done) = (Vec::new(), 0);
    while done < count {
        let first = done.saturating_sub(overlap - behind);
        let shown = if first + room >= count { count.saturating_sub(room)..count } else { first..first + room };
        let end = if shown.end == count { count } else { shown.end - behind };
        chunks.push(Chunk { shown, own: done..end });
        done = end;
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_own_every_piece_once_and_see_around_it() {
        for causal in [false, true] {
            for (count, room) in [(0, 8), (1, 8), (8, 8), (9, 8), (1000, 64), (1001, 510), (5000, 128), (3, 1)] {
                let chunks = chunks(count, room, causal);
                let owned: Vec<usize> = chunks.iter().flat_map(|chunk| chunk.own.clone()).collect();
                assert_eq!(owned, (0..count).collect::<Vec<_>>(), "{count} {room} {causal}");
                for chunk in &chunks {
                    assert!(chunk.shown.len() <= room && chunk.shown.start <= chunk.own.start && chunk.own.end <= chunk.shown.end);
                    let before = if causal { room / 4 } else { room / 16 - room / 32 };
                    assert!(chunk.own.start == 0 || chunk.own.start - chunk.shown.start >= before, "{chunk:?}");
                    assert!(causal || chunk.own.end == count || chunk.shown.end - chunk.own.end >= room / 32, "{chunk:?}");
                }
            }
        }
    }
}
