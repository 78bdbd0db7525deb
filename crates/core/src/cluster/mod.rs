//! Rows grouped by cosine: by a scan in order ([`Scan`]) or by matching halves ([`matching`]).
//!
//! The cosine of two rows is the sum in f64 of the products of the rows divided by their lengths, each rounded to f32, and is
//! rounded to f32 itself; rows alike bit for bit have cosine 1. It depends on the two rows alone: blocks, levels and threads only
//! decide which pairs need not be looked at ([`index`]). A row of length 0 (in f32), or one that holds something other than
//! finite numbers, is similar to nothing.

mod directions;
mod index;
mod matching;
mod scan;

pub(crate) use directions::{Directions, dot};
pub(crate) use index::{Found, closest};
pub(crate) use matching::matching;
pub(crate) use scan::{Scan, Scanned, scan_all};

/// Rows in groups, numbered in order of founding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Clusters {
    /// The cluster of each row.
    pub(crate) assignment: Vec<u32>,
    /// The row that represents each cluster.
    pub(crate) leaders: Vec<u32>,
    /// Rows in each cluster.
    pub(crate) sizes: Vec<u32>,
}

impl Clusters {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.leaders.len()
    }

    /// Takes in the next row: a member of a cluster, or the leader of the next one.
    fn join(&mut self, cluster: u32) {
        if cluster as usize == self.leaders.len() {
            self.leaders.push(self.assignment.len() as u32);
            self.sizes.push(0);
        }
        self.assignment.push(cluster);
        self.sizes[cluster as usize] += 1;
    }

    /// Whether a row leads.
    pub(crate) fn leads(&self, row: usize) -> bool {
        self.leaders[self.assignment[row] as usize] as usize == row
    }
}
