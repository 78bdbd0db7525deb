//! Clusters of tokens as tensor operations: members are added up where their cluster is, divided by their number, and clusters attend.
//!
//! Bidirectional, `O_a = softmax_b(scale Q_a·K_b + ln size_b) V_b`, a token takes the rows of its cluster, or a blend of several by the cosine to
//! their leaders, or past a gate its own query's attention. Causal, block by block: keys of the block as they are, those before it as the
//! clusters of that prefix. Which tokens form clusters is given; this is one sequence and one set of heads after another.

use super::Attention;
use super::composed::HIDDEN;
use burn::tensor::{Bool, DType, Device, IndexingUpdateOp, Int, Tensor, TensorData, activation};
use regard_core::mechanism::clustered::{Merging, Metric, Representative, Set};
use std::ops::Range;

/// `[B, H, N, Dv]`, in f32, or in f64 as q is.
pub(super) fn attention(merging: &Merging<'_>, how: &Attention, [q, k, v]: [Tensor<4>; 3]) -> Tensor<4> {
    let dtype = if q.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let compared = match (merging.config.metric, &how.learned.x) {
        (Metric::Hidden, Some(x)) => x.clone().unsqueeze_dim::<4>(1),
        _ => k.clone(),
    };
    let ([batch, heads, tokens, _], [.., width]) = (q.dims(), v.dims());
    let device = q.device();
    let [q, k, v, compared] = [q, k, v, compared].map(|x| x.cast(dtype));
    let threshold = how.learned.threshold.clone().map(|threshold| threshold.cast(dtype));
    let call = Call { merging, q, k, v, compared, threshold };
    let rows: Vec<Tensor<3>> = (0..batch).map(|b| call.batch_row(b)).collect();
    if rows.is_empty() { Tensor::zeros([0, heads, tokens, width], (&device, dtype)) } else { Tensor::stack(rows, 0) }
}

/// Tensors of a call.
struct Call<'a> {
    merging: &'a Merging<'a>,
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    /// `[B, C, N, E]`.
    compared: Tensor<4>,
    threshold: Option<Tensor<1>>,
}

impl Call<'_> {
    /// Sequences side by side and zeros between them, `[H, N, Dv]`.
    fn batch_row(&self, b: usize) -> Tensor<3> {
        let [[_, heads, tokens, _], [.., width]] = [self.q.dims(), self.v.dims()];
        let zeros = |rows: usize| Tensor::zeros([heads, rows, width], (&self.q.device(), self.q.dtype()));
        let sets: Vec<&Set<'_>> = self.merging.sets.iter().filter(|set| set.batch == b && !set.rows.is_empty()).collect();
        let (mut parts, mut end) = (Vec::new(), 0);
        for sets in sets.chunk_by(|a, b| a.rows == b.rows) {
            let rows = &sets[0].rows;
            parts.extend((rows.start > end).then(|| zeros(rows.start - end)));
            parts.push(Tensor::cat(sets.iter().map(|set| self.group(set).attention()).collect(), 0));
            end = rows.end;
        }
        parts.extend((end < tokens || parts.is_empty()).then(|| zeros(tokens - end)));
        Tensor::cat(parts, 1)
    }

    fn group<'s>(&'s self, set: &'s Set<'s>) -> Group<'s> {
        let part = |x: &Tensor<4>, heads: &Range<usize>| {
            let x = x.clone().slice([set.batch..set.batch + 1, heads.clone(), set.rows.clone()]);
            x.squeeze_dim::<3>(0)
        };
        Group {
            merging: self.merging,
            set,
            q: part(&self.q, &set.heads),
            k: part(&self.k, &set.kv_heads),
            v: part(&self.v, &set.kv_heads),
            compared: part(&self.compared, &(set.compared..set.compared + 1)).squeeze_dim(0),
            threshold: self.threshold.clone().map(|threshold| threshold.slice([set.heads.clone()])),
        }
    }
}

/// One set of one sequence: q `[h, n, Dk]`, k `[g, n, Dk]`, v `[g, n, Dv]`, what tokens are compared by `[n, E]`.
struct Group<'a> {
    merging: &'a Merging<'a>,
    set: &'a Set<'a>,
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    compared: Tensor<2>,
    threshold: Option<Tensor<1>>,
}

/// Keys, values, and how many each stands for.
struct Merged {
    k: Tensor<3>,
    v: Tensor<3>,
    sizes: Vec<f32>,
}

fn indices(values: impl Iterator<Item = u32>, device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.map(|value| value as i32).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

impl Group<'_> {
    /// `[h, n, Dv]`.
    fn attention(&self) -> Tensor<3> {
        if self.merging.causal { self.causal() } else { self.bidirectional() }
    }

    fn device(&self) -> Device {
        self.q.device()
    }

    fn numbers(&self, values: Vec<f32>) -> Tensor<1> {
        let count = values.len();
        Tensor::<1>::from_data(TensorData::new(values, [count]), &self.device()).cast(self.q.dtype())
    }

    fn bools(&self, values: Vec<bool>) -> Tensor<1, Bool> {
        let count = values.len();
        Tensor::from_data(TensorData::new(values, [count]), &self.device())
    }

    /// Means of the members of every cluster that the first tokens form, `[.., clusters, D]` of `[.., n, D]`.
    fn means(&self, x: &Tensor<3>, tokens: usize) -> (Tensor<3>, Vec<f32>) {
        let assignment = &self.set.assignment()[..tokens];
        let mut sizes = vec![0.0f32; assignment.iter().max().map_or(0, |&most| most as usize + 1)];
        assignment.iter().for_each(|&cluster| sizes[cluster as usize] += 1.0);
        let [heads, _, width] = x.dims();
        let zeros = Tensor::zeros([heads, sizes.len(), width], (&self.device(), x.dtype()));
        let own = indices(assignment.iter().copied(), &self.device());
        let sums = zeros.select_assign(1, own, x.clone().narrow(1, 0, tokens), IndexingUpdateOp::Add);
        let shares = self.numbers(sizes.iter().map(|size| 1.0 / size).collect()).reshape([1, sizes.len(), 1]);
        (sums * shares, sizes)
    }

    /// What queries and keys of clusters are.
    fn represent(&self, x: &Tensor<3>, tokens: usize) -> Tensor<3> {
        let (means, sizes) = self.means(x, tokens);
        match self.merging.config.representative {
            Representative::Mean => means,
            Representative::Leader => x.clone().select(1, indices(self.set.leaders()[..sizes.len()].iter().copied(), &self.device())),
        }
    }

    fn merged(&self, tokens: usize) -> Merged {
        let (v, sizes) = self.means(&self.v, tokens);
        Merged { k: self.represent(&self.k, tokens), v, sizes }
    }

    /// Attention of `q [h, rows, Dk]`; `hidden [rows, keys]`.
    fn attend(&self, q: Tensor<3>, keys: &Merged, hidden: Option<Tensor<2, Bool>>) -> Tensor<3> {
        let ([heads, rows, width], [kv_heads, count, _]) = (q.dims(), keys.k.dims());
        let group = heads / kv_heads;
        let q = q.reshape([kv_heads, group * rows, width]);
        let mut scores = q.matmul(keys.k.clone().swap_dims(1, 2)) * self.merging.scale;
        if self.merging.config.log_size {
            scores = scores + self.numbers(keys.sizes.iter().map(|size| size.ln()).collect()).reshape([1, 1, count]);
        }
        if let Some(hidden) = hidden {
            let all = [kv_heads, group, rows, count];
            scores = scores.reshape(all).mask_fill(hidden.unsqueeze::<4>().expand(all), HIDDEN).reshape([kv_heads, group * rows, count]);
        }
        activation::softmax(scores, 2).matmul(keys.v.clone()).reshape([heads, rows, keys.v.dims()[2]])
    }

    fn bidirectional(&self) -> Tensor<3> {
        let tokens = self.set.rows.len();
        let merged = self.merged(tokens);
        let of_clusters = self.attend(self.represent(&self.q, tokens), &merged, None);
        let spread = if self.set.most() == 0 { self.of_own(&of_clusters) } else { self.blend(&of_clusters) };
        match &self.threshold {
            Some(threshold) if self.merging.gated => {
                let gate = self.gate(threshold);
                gate.clone() * spread + (gate * -1.0 + 1.0) * self.attend(self.q.clone(), &merged, None)
            }
            _ => spread,
        }
    }

    fn of_own(&self, of_clusters: &Tensor<3>) -> Tensor<3> {
        of_clusters.clone().select(1, indices(self.set.assignment().iter().copied(), &self.device()))
    }

    /// `softmax(cos / temperature)` over the clusters of each token's blend.
    fn blend(&self, of_clusters: &Tensor<3>) -> Tensor<3> {
        let (tokens, most, [heads, _, width]) = (self.set.rows.len(), self.set.most(), of_clusters.dims());
        let blends: Vec<Option<u32>> = self.set.blends().collect();
        let missing = self.bools(blends.iter().map(Option::is_none).collect()).reshape([tokens, most]);
        let blends = blends.iter().map(|cluster| cluster.unwrap_or(0));
        let cosines = self.cosines(blends.clone().enumerate().map(|(at, cluster)| [(at / most) as u32, cluster]));
        let scores = (cosines * (1.0 / f64::from(self.merging.config.temperature))).reshape([tokens, most]).mask_fill(missing, HIDDEN);
        let weights = activation::softmax(scores, 1).reshape([1, tokens, most, 1]);
        let rows = of_clusters.clone().select(1, indices(blends, &self.device())).reshape([heads, tokens, most, width]);
        (rows * weights).sum_dim(2).squeeze_dim(2)
    }

    /// How far each token's gate is open to its cluster, `[1, n, 1]`: 1 for a leader.
    fn gate(&self, threshold: &Tensor<1>) -> Tensor<3> {
        let (assignment, leaders) = (self.set.assignment(), self.set.leaders());
        let cosines = self.cosines(assignment.iter().enumerate().map(|(token, &cluster)| [token as u32, cluster]));
        let gate = activation::sigmoid((cosines - threshold.clone()) * (1.0 / f64::from(self.merging.config.temperature)));
        let leads = assignment.iter().enumerate().map(|(token, &cluster)| leaders[cluster as usize] as usize == token).collect();
        gate.mask_fill(self.bools(leads), 1.0).reshape([1, assignment.len(), 1])
    }

    /// Cosines of tokens and leaders of clusters: 1 for the leader itself, 0 for a vector of zeros.
    fn cosines(&self, pairs: impl Iterator<Item = [u32; 2]>) -> Tensor<1> {
        let pairs: Vec<[u32; 2]> = pairs.map(|[token, cluster]| [token, self.set.leaders()[cluster as usize]]).collect();
        let [a, b] = [0, 1].map(|side| self.compared.clone().select(0, indices(pairs.iter().map(|pair| pair[side]), &self.device())));
        let product = |a: &Tensor<2>, b: &Tensor<2>| (a.clone() * b.clone()).sum_dim(1).squeeze_dim::<1>(1);
        let squares = product(&a, &a) * product(&b, &b);
        let zero = squares.clone().detach().equal_elem(0.0);
        let itself = self.bools(pairs.iter().map(|[token, leader]| token == leader).collect());
        let lengths = squares.mask_fill(zero.clone().bool_or(itself.clone()), 1.0).sqrt();
        (product(&a, &b) * lengths.recip()).mask_fill(zero, 0.0).mask_fill(itself, 1.0)
    }

    fn causal(&self) -> Tensor<3> {
        let tokens = self.set.rows.len();
        let block = |start: usize| {
            let end = tokens.min(start.saturating_add(self.merging.config.block));
            let rows = |x: &Tensor<3>| x.clone().narrow(1, start, end - start);
            let mut keys = Merged { k: rows(&self.k), v: rows(&self.v), sizes: vec![1.0; end - start] };
            let mut clusters = 0;
            if start > 0 {
                let before = self.merged(start);
                clusters = before.sizes.len();
                keys.k = Tensor::cat(vec![before.k, keys.k], 1);
                keys.v = Tensor::cat(vec![before.v, keys.v], 1);
                keys.sizes = [before.sizes, keys.sizes].concat();
            }
            let (count, width) = (end - start, clusters + end - start);
            let later = (0..count * width).map(|at| at % width > clusters + at / width).collect();
            self.attend(rows(&self.q), &keys, Some(self.bools(later).reshape([count, width])))
        };
        Tensor::cat((0..tokens).step_by(self.merging.config.block).map(block).collect(), 1)
    }
}
