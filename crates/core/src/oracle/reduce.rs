//! The definitions of reducers in plain float64, one sequence at a time: slow and obvious.
//!
//! `cos(a, b) = a·b / (|a| |b|)`, undefined where one of them is zero: such a token resembles nothing and matches nothing. Everything that
//! is compared goes to the larger value, on ties to the lower position. [`Fate::gap`] is the smallest difference between two unequal
//! values that were compared: choices that are closer than rounding are nobody's error.

/// One sequence. Positions count from its start; what is absent is empty.
#[derive(Clone, Debug, Default)]
pub struct Sequence {
    /// N.
    pub length: usize,
    /// `[N]`.
    pub score: Vec<f64>,
    /// `[N]`.
    pub gate_logits: Vec<f64>,
    /// `[N][E]`.
    pub x: Vec<Vec<f64>>,
    /// `[N][Dk]`.
    pub keys: Vec<Vec<f64>>,
    /// `[N]`.
    pub protected: Vec<bool>,
}

impl Sequence {
    /// The same with the first `leading` tokens protected, too.
    #[must_use]
    pub fn protecting(&self, leading: usize) -> Self {
        let protected = self.protected.iter().enumerate().map(|(i, &protected)| protected || i < leading).collect();
        Sequence { protected, ..self.clone() }
    }

    fn protected_count(&self) -> usize {
        self.protected.iter().filter(|protected| **protected).count()
    }
}

/// What becomes of every token of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Fate {
    /// `[N]`: its own position where it stays, another where it merges, none where it is deleted.
    pub goes_to: Vec<Option<usize>>,
    /// The smallest difference between unequal values that were compared.
    pub gap: f64,
}

/// How many tokens stay.
#[derive(Clone, Copy, Debug)]
pub enum Amount {
    /// `max(1, ceil(keep N))`.
    Keep(f64),
    /// So many.
    Stay(usize),
    /// All but so many.
    Merge(usize),
}

impl Amount {
    /// Of N tokens; none if that is fewer than are protected.
    fn of(self, sequence: &Sequence) -> Option<usize> {
        let stay = match self {
            Amount::Keep(keep) => ((keep * sequence.length as f64 - 1e-9).ceil() as usize).max(1),
            Amount::Stay(count) => count,
            Amount::Merge(_) => sequence.length,
        };
        let stay = stay.min(sequence.length);
        (stay >= sequence.protected_count()).then_some(stay)
    }
}

/// Compares, and remembers how close it was.
struct Judge {
    gap: f64,
}

impl Judge {
    fn new() -> Self {
        Judge { gap: f64::INFINITY }
    }

    fn is_larger(&mut self, a: f64, b: f64) -> bool {
        if a != b {
            self.gap = self.gap.min((a - b).abs());
        }
        a > b
    }

    /// The best of some candidates, the first of equals.
    fn best(&mut self, candidates: &[usize], value: impl Fn(usize) -> f64) -> Option<usize> {
        let mut best = *candidates.first()?;
        for &other in candidates {
            if self.is_larger(value(other), value(best)) {
                best = other;
            }
        }
        Some(best)
    }

    /// The `count` best of some ascending candidates, best first.
    fn ranking(&mut self, candidates: &[usize], count: usize, value: impl Fn(usize) -> f64) -> Vec<usize> {
        let (mut left, mut ranking) = (candidates.to_vec(), Vec::new());
        while let (true, Some(best)) = (ranking.len() < count, self.best(&left, &value)) {
            ranking.push(best);
            left.retain(|&other| other != best);
        }
        ranking
    }
}

impl Fate {
    /// Nothing happens.
    pub fn all_stay(length: usize) -> Self {
        Fate { goes_to: (0..length).map(Some).collect(), gap: f64::INFINITY }
    }

    /// Only these stay.
    fn only(length: usize, stay: &[usize], gap: f64) -> Self {
        Fate { goes_to: (0..length).map(|i| stay.contains(&i).then_some(i)).collect(), gap }
    }

    /// For every token that stays, by position: its position, and the position and share of each of its members, given sizes.
    pub fn groups(&self, sizes: &[f64]) -> Vec<(usize, Vec<(usize, f64)>)> {
        let group = |place: usize| {
            let members: Vec<usize> = (0..sizes.len()).filter(|&i| self.goes_to[i] == Some(place)).collect();
            let total: f64 = members.iter().map(|&i| sizes[i]).sum();
            (place, members.iter().map(|&i| (i, sizes[i] / total)).collect())
        };
        (0..sizes.len()).filter(|&i| self.goes_to[i] == Some(i)).map(group).collect()
    }
}

/// Protected tokens and those with a value of at least `threshold`; if that is nobody, the best one.
pub fn above(sequence: &Sequence, value: &[f64], threshold: f64) -> Fate {
    let all: Vec<usize> = (0..sequence.length).collect();
    let mut stay: Vec<usize> = all.iter().copied().filter(|&i| sequence.protected[i] || value[i] >= threshold).collect();
    if stay.is_empty() {
        stay.extend(Judge::new().best(&all, |i| value[i]));
    }
    Fate::only(sequence.length, &stay, f64::INFINITY)
}

/// Protected tokens, and of the others those with the highest scores.
pub fn highest(sequence: &Sequence, amount: Amount) -> Option<Fate> {
    let count = amount.of(sequence)?;
    let (mut stay, free): (Vec<usize>, Vec<usize>) = (0..sequence.length).partition(|&i| sequence.protected[i]);
    let room = count - stay.len();
    stay.extend(Judge::new().ranking(&free, room, |i| sequence.score[i]));
    Some(Fate::only(sequence.length, &stay, f64::INFINITY))
}

/// The first token and protected ones, then again and again the token that is farthest from all of them.
pub fn coreset(sequence: &Sequence, amount: Amount) -> Option<Fate> {
    let count = amount.of(sequence)?;
    let (mut stay, mut free): (Vec<usize>, Vec<usize>) = (0..sequence.length).partition(|&i| sequence.protected[i] || i == 0);
    let squared = |i: usize, j: usize| -> f64 { sequence.x[i].iter().zip(&sequence.x[j]).map(|(a, b)| (a - b) * (a - b)).sum() };
    let mut judge = Judge::new();
    while stay.len() < count {
        let to_nearest = |i: usize| stay.iter().map(|&centre| squared(i, centre)).fold(f64::INFINITY, f64::min);
        let farthest = judge.best(&free, to_nearest)?;
        stay.push(farthest);
        free.retain(|&i| i != farthest);
    }
    Some(Fate::only(sequence.length, &stay, judge.gap))
}

/// A token stays where its gate `k sigmoid(-logit)` is not below `k/2`.
pub fn gated(sequence: &Sequence, k: f64) -> Fate {
    let gates: Vec<f64> = sequence.gate_logits.iter().map(|logit| k / (1.0 + logit.exp())).collect();
    above(sequence, &gates, k / 2.0)
}

/// Cosine; none where a vector is zero.
fn cosine(a: &[f64], b: &[f64]) -> Option<f64> {
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let norms = dot(a, a).sqrt() * dot(b, b).sqrt();
    (norms > 0.0).then(|| dot(a, b) / norms)
}

/// The best target of every source, with its cosine.
fn best_targets(keys: &[Vec<f64>], sources: &[usize], targets: &[usize], judge: &mut Judge) -> Vec<Option<(usize, f64)>> {
    let best = |&source: &usize| {
        let similar: Vec<usize> = targets.iter().copied().filter(|&target| cosine(&keys[source], &keys[target]).is_some()).collect();
        let similarity = |target: usize| cosine(&keys[source], &keys[target]).unwrap_or(f64::NAN);
        judge.best(&similar, similarity).map(|target| (target, similarity(target)))
    };
    sources.iter().map(best).collect()
}

/// Unprotected tokens at even positions are sources, at odd ones targets; the sources most similar to their best target merge.
pub fn tome(sequence: &Sequence, amount: Amount) -> Option<Fate> {
    let stay = amount.of(sequence)?;
    let merge = if let Amount::Merge(r) = amount { r } else { sequence.length - stay };
    let free: Vec<usize> = (0..sequence.length).filter(|&i| !sequence.protected[i]).collect();
    let (sources, targets): (Vec<usize>, Vec<usize>) = free.into_iter().partition(|i| i % 2 == 0);
    let mut judge = Judge::new();
    let best = best_targets(&sequence.keys, &sources, &targets, &mut judge);
    let matched: Vec<usize> = (0..sources.len()).filter(|&at| best[at].is_some()).collect();
    let mut fate = Fate::all_stay(sequence.length);
    for at in judge.ranking(&matched, merge, |at| best[at].map_or(f64::NAN, |(_, cosine)| cosine)) {
        fate.goes_to[sources[at]] = best[at].map(|(target, _)| target);
    }
    Some(Fate { gap: judge.gap, ..fate })
}

/// x above 0, `e^x - 1` below.
pub fn elu(x: f64) -> f64 {
    if x > 0.0 { x } else { x.exp() - 1.0 }
}

/// `exp(-d² / (2σ²))`.
pub fn gaussian(d: f64, sigma: f64) -> f64 {
    (-d * d / (2.0 * sigma * sigma)).exp()
}

/// `mean_j share(cos_ij)` of every token; the cosine with a zero vector is 0.
pub fn energies(sequence: &Sequence, share: impl Fn(f64) -> f64) -> Vec<f64> {
    let mean = |i: usize| {
        let all = sequence.keys.iter().map(|other| share(cosine(&sequence.keys[i], other).unwrap_or(0.0)));
        all.sum::<f64>() / sequence.length as f64
    };
    (0..sequence.length).map(mean).collect()
}

/// The 2r unprotected tokens of highest energy, dealt alternately to sources and targets; every source merges with its best target.
pub fn pitome(sequence: &Sequence, keep: f64, share: impl Fn(f64) -> f64) -> Option<Fate> {
    let stay = Amount::Keep(keep).of(sequence)?;
    let free: Vec<usize> = (0..sequence.length).filter(|&i| !sequence.protected[i]).collect();
    let pairs = (sequence.length - stay).min(free.len() / 2);
    let energy = energies(sequence, share);
    let mut judge = Judge::new();
    let mergeable = judge.ranking(&free, 2 * pairs, |i| energy[i]);
    let (mut sources, mut targets) = (Vec::new(), Vec::new());
    for (rank, &i) in mergeable.iter().enumerate() {
        if rank % 2 == 0 { sources.push(i) } else { targets.push(i) }
    }
    targets.sort_unstable();
    let mut fate = Fate::all_stay(sequence.length);
    for (&source, best) in sources.iter().zip(best_targets(&sequence.keys, &sources, &targets, &mut judge)) {
        if let Some((target, _)) = best {
            fate.goes_to[source] = Some(target);
        }
    }
    Some(Fate { gap: judge.gap, ..fate })
}
