//! What a block of queries reads: clusters of the closed blocks as of its beginning, and behind them the block itself.
//!
//! Per head of merged keys, rows `0..m` are clusters and rows `m..m+recent` the block. Closing folds the block's rows into the
//! clusters where they stand: the row that founds cluster `a` is never before row `a`. A query at the end of all rows and a causal
//! rule then see the right keys, so that a block is one exact problem and nothing has to be merged.

use super::ground::Sharing;
use super::rows::add_to_mean;
use super::{Clustered, Representative};
use crate::view::{Strided, View};
use crate::{Error, Problem, Scores, Sight};

/// Clusters and a block of every head.
#[derive(Debug, Clone)]
pub(super) struct Fold {
    sharing: Sharing,
    widths: [usize; 2],
    keep_leader: bool,
    log_size: bool,
    capacity: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Members of each cluster, per head.
    counts: Vec<Vec<u32>>,
    recent: usize,
}

/// How to take back the closing of a block.
#[derive(Debug, Default)]
pub(super) struct Undo {
    /// Clusters of each head before.
    clusters: Vec<usize>,
    /// Head, cluster and its members before each change.
    changed: Vec<[u32; 3]>,
    /// Its key and value before each change.
    rows: Vec<f32>,
}

/// Rows of the keys of one head, and how many are in use.
pub(super) struct Held {
    pub(super) spans: Vec<[usize; 2]>,
    bias: Option<Vec<f32>>,
    /// The longest head.
    pub(super) rows: usize,
}

impl Fold {
    pub(super) fn new(config: &Clustered, sharing: Sharing, widths: [usize; 2]) -> Self {
        Fold {
            sharing,
            widths,
            keep_leader: config.representative == Representative::Leader,
            log_size: config.log_size,
            capacity: 0,
            keys: Vec::new(),
            values: Vec::new(),
            counts: vec![Vec::new(); sharing.kv],
            recent: 0,
        }
    }

    /// Clusters and rows of the block that a head holds.
    fn held_by(&self, head: usize) -> usize {
        self.counts[head].len() + self.recent
    }

    pub(super) fn recent(&self) -> usize {
        self.recent
    }

    pub(super) fn counts(&self, head: usize) -> &[u32] {
        &self.counts[head]
    }

    pub(super) fn bytes(&self) -> usize {
        let counts: usize = self.counts.iter().map(Vec::capacity).sum();
        (self.keys.capacity() + self.values.capacity() + counts) * size_of::<f32>()
    }

    /// Makes room for `rows` rows of every head.
    fn reserve(&mut self, rows: usize) {
        if rows <= self.capacity {
            return;
        }
        let capacity = rows.max(self.capacity + self.capacity / 2).max(16);
        for (data, width) in [(&mut self.keys, self.widths[0]), (&mut self.values, self.widths[1])] {
            let mut wider = vec![0.0; self.sharing.kv * capacity * width];
            for (to, from) in wider.chunks_mut(capacity * width).zip(data.chunks(self.capacity.max(1) * width)) {
                to[..from.len()].copy_from_slice(from);
            }
            *data = wider;
        }
        self.capacity = capacity;
    }

    /// Adds tokens `0..count` to the block; `row(which, kv head, token, into)` writes a key (0) or a value (1).
    pub(super) fn append(&mut self, count: usize, row: impl Fn([usize; 3], &mut [f32])) {
        let most = (0..self.sharing.kv).map(|head| self.held_by(head)).max().unwrap_or(0);
        self.reserve(most + count);
        for (head, source) in self.sharing.key_heads().into_iter().enumerate() {
            let first = head * self.capacity + self.held_by(head);
            for (which, (data, width)) in [(&mut self.keys, self.widths[0]), (&mut self.values, self.widths[1])].into_iter().enumerate() {
                let rows = data[first * width..].chunks_mut(width).take(count);
                rows.enumerate().for_each(|(token, into)| row([which, source, token], into));
            }
        }
        self.recent += count;
    }

    /// Folds the block into clusters: of each set, the cluster of every token in it.
    pub(super) fn close<'s>(&mut self, assignment: impl Fn(usize) -> &'s [u32], mut undo: Option<&mut Undo>) {
        if let Some(undo) = &mut undo {
            undo.clusters = self.counts.iter().map(Vec::len).collect();
        }
        for head in 0..self.sharing.kv {
            let before = self.counts[head].len();
            for (token, &cluster) in assignment(self.sharing.set_of(head)).iter().enumerate() {
                if let Some(undo) = undo.as_deref_mut().filter(|_| (cluster as usize) < before) {
                    undo.changed.push([head as u32, cluster, self.counts[head][cluster as usize]]);
                    for (data, width) in [(&self.keys, self.widths[0]), (&self.values, self.widths[1])] {
                        undo.rows.extend_from_slice(&data[(head * self.capacity + cluster as usize) * width..][..width]);
                    }
                }
                self.join(head, before + token, cluster as usize);
            }
        }
        self.recent = 0;
    }

    /// Row `row` of a head joins a cluster, or founds it.
    fn join(&mut self, head: usize, row: usize, cluster: usize) {
        let counts = &mut self.counts[head];
        if cluster == counts.len() {
            counts.push(0);
        }
        counts[cluster] += 1;
        let count = counts[cluster];
        let first = head * self.capacity;
        for (data, width, stays) in [(&mut self.keys, self.widths[0], self.keep_leader), (&mut self.values, self.widths[1], false)] {
            if row == cluster || (stays && count > 1) {
                continue;
            }
            let (clusters, block) = data.split_at_mut((first + row) * width);
            add_to_mean(&mut clusters[(first + cluster) * width..][..width], &block[..width], count);
        }
    }

    /// Takes back the closing of the block before; the present block is dropped.
    pub(super) fn reopen(&mut self, undo: &Undo) {
        let [dk, dv] = self.widths;
        let mut end = undo.rows.len();
        for &[head, cluster, count] in undo.changed.iter().rev() {
            let (head, cluster) = (head as usize, cluster as usize);
            let row = head * self.capacity + cluster;
            end -= dk + dv;
            self.keys[row * dk..(row + 1) * dk].copy_from_slice(&undo.rows[end..end + dk]);
            self.values[row * dv..(row + 1) * dv].copy_from_slice(&undo.rows[end + dk..end + dk + dv]);
            self.counts[head][cluster] = count;
        }
        self.counts.iter_mut().zip(&undo.clusters).for_each(|(counts, &clusters)| counts.truncate(clusters));
        self.recent = 0;
    }

    /// What is held now.
    pub(super) fn held(&self) -> Held {
        let spans: Vec<[usize; 2]> = (0..self.sharing.kv).map(|head| [0, self.held_by(head)]).collect();
        let rows = spans.iter().map(|[_, count]| *count).max().unwrap_or(0);
        let bias = self.log_size.then(|| {
            let mut bias = vec![0.0; spans.len() * rows];
            for (counts, bias) in self.counts.iter().zip(bias.chunks_mut(rows.max(1))) {
                counts.iter().zip(bias).for_each(|(&count, bias)| *bias = (count as f32).ln());
            }
            bias
        });
        Held { spans, bias, rows }
    }

    /// The last tokens' queries over everything that is held.
    pub(super) fn problem<'s>(&'s self, q: View<'s>, held: &'s Held, scale: Option<f32>) -> Result<Problem<'s>, Error> {
        let view = |data: &'s [f32], width: usize, name| -> Result<View<'s>, Error> {
            let head = (self.capacity * width) as isize;
            let strides = [head * self.sharing.kv as isize, head, width as isize, 1];
            Ok(Strided::new(data, 0, [1, self.sharing.kv, held.rows, width], strides, name)?.into())
        };
        let mut scores = scale.map_or_else(Scores::new, |scale| Scores::new().scale(scale));
        if let Some(bias) = &held.bias {
            scores = scores.key_bias(bias);
        }
        let (k, v) = (view(&self.keys, self.widths[0], "k")?, view(&self.values, self.widths[1], "v")?);
        Problem::new(q, k, v, Sight::causal().key_spans(&held.spans), scores)
    }
}
