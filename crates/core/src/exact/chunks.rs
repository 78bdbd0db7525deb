//! Chunks of the backward pass: the keys that one job takes.
//!
//! A chunk is one piece of [`PIECE`] neighbours. Where lifetimes are scattered only few of them are alive at a time; so a
//! chunk then takes on further pieces, as long as no block of queries meets more than [`LIVE`] of its keys.

use crate::Problem;
use crate::sight::Scope;
use std::ops::Range;

/// Keys in a piece.
const PIECE: usize = 256;
/// Most keys of a chunk of several pieces that are alive at one block of queries.
const LIVE: usize = 384;
/// Most keys in a chunk, for the sums of all of them are at hand.
const LONGEST: usize = 2048;

/// The chunks of every kv head.
#[derive(Debug)]
pub(super) struct Chunks {
    /// Rows of each piece, the same for all heads.
    pub(super) rows: Vec<Range<usize>>,
    /// Pieces of each chunk, per kv head.
    pieces: Vec<Vec<Range<usize>>>,
    /// Kv head and chunk of each job; of a head's chunks the earlier one comes first.
    pub(super) jobs: Vec<[usize; 2]>,
}

impl Chunks {
    /// For blocks of `block` queries.
    pub(super) fn new(problem: &Problem<'_>, block: usize) -> Self {
        let dims = &problem.dims;
        let heads = dims.batch * dims.kv_heads;
        let mut chunks = Chunks { rows: problem.sight.key_pieces(dims, PIECE), pieces: Vec::new(), jobs: Vec::new() };
        chunks.pieces = (0..heads).map(|head| chunks.cut(problem, [head / dims.kv_heads, head % dims.kv_heads], block)).collect();
        chunks.jobs = (0..heads).flat_map(|head| (0..chunks.pieces[head].len()).map(move |chunk| [head, chunk])).collect();
        chunks.jobs.sort_by_key(|&[head, chunk]| chunks.pieces[head][chunk].start);
        chunks
    }

    /// Pieces of a chunk.
    pub(super) fn pieces(&self, [head, chunk]: [usize; 2]) -> Range<usize> {
        self.pieces[head][chunk].clone()
    }

    /// Chunks of a head that some rows lie in.
    pub(super) fn holding(&self, head: usize, rows: Range<usize>) -> Range<usize> {
        if rows.is_empty() {
            return 0..0;
        }
        let chunk_of = |row| self.pieces[head].partition_point(|pieces| self.rows[pieces.end - 1].end <= row);
        chunk_of(rows.start)..chunk_of(rows.end - 1) + 1
    }

    fn cut(&self, problem: &Problem<'_>, [b, g]: [usize; 2], block: usize) -> Vec<Range<usize>> {
        let heads = problem.dims.batch * problem.dims.kv_heads;
        let longest = (heads * problem.dims.keys / 32).clamp(PIECE, LONGEST);
        let mut chunks: Vec<Range<usize>> = Vec::new();
        let mut alive = Alive::default();
        let mut sequence = usize::MAX;
        for (piece, rows) in self.rows.iter().enumerate() {
            let own = problem.sight.sequence_of_key(b, rows.start);
            let scope = problem.sight.scope(&problem.dims, own, g);
            let grows = own == std::mem::replace(&mut sequence, own) && Alive::is_counted(&scope);
            let chunk = chunks.last_mut().filter(|chunk| grows && rows.end - self.rows[chunk.start].start <= longest);
            match chunk {
                Some(chunk) if alive.add(&scope, rows.clone(), block) <= LIVE => chunk.end += 1,
                _ => {
                    alive.changes.clear();
                    alive.add(&scope, rows.clone(), block);
                    chunks.push(piece..piece + 1);
                }
            }
        }
        chunks
    }
}

/// How many keys of a chunk are alive, block of queries by block of queries.
#[derive(Debug, Default)]
struct Alive {
    /// By how many the number grows at each block.
    changes: Vec<i32>,
}

impl Alive {
    /// Where it is known before the walk; query positions of their own may go to and fro.
    fn is_counted(scope: &Scope<'_>) -> bool {
        scope.is_scattered() && !scope.has_positions()
    }

    /// Adds some rows; gives the largest number of live ones.
    fn add(&mut self, scope: &Scope<'_>, rows: Range<usize>, block: usize) -> usize {
        let blocks = scope.queries.len().div_ceil(block);
        if blocks == 0 || !Self::is_counted(scope) {
            return 0;
        }
        self.changes.resize(blocks + 1, 0);
        let (low, high) = scope.position_range(scope.queries.clone());
        for row in rows.start.max(scope.keys.start)..rows.end.min(scope.keys.end) {
            let (first, last) = scope.seen_by(row);
            let (first, last) = (first.max(low), last.min(high));
            if first <= last {
                self.changes[(first - low) as usize / block] += 1;
                self.changes[(last - low) as usize / block + 1] -= 1;
            }
        }
        let mut now = 0;
        self.changes.iter().fold(0, |most, change| {
            now += change;
            most.max(now)
        }) as usize
    }
}
