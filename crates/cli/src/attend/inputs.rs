//! The tensors of a file as the mechanism takes them.

use super::{Call, check_room};
use crate::failure::Failure;
use crate::files::Archive;
use crate::tensor::{Float, Tensor};
use regard_core::mechanism::Inputs;
use regard_core::{Dims, Error, Sight, View};

/// Everything that a call reads.
pub struct Loaded {
    /// The dtype of q, k, v.
    pub float: Float,
    /// Sizes by q's and v's shapes.
    pub dims: Dims,
    /// `[B, H, N, Dk]`.
    pub q: Tensor,
    /// `[B, G, M, Dk]`.
    pub k: Tensor,
    /// `[B, G, M, Dv]`.
    pub v: Tensor,
    /// `[B, H, N, Dv]`.
    pub d_o: Option<Tensor>,
    /// `[B, G, M]`.
    pub key_bias: Option<Tensor>,
    /// `[B|1, H|1, N, M]`.
    pub bias: Option<Tensor>,
    /// `[B|1, H|1, N, M]`.
    pub mask: Option<Tensor>,
    /// `[B, G, M]`.
    pub until: Option<Vec<i64>>,
    /// `[B, N, E]`.
    pub x: Option<Tensor>,
    /// `[B, G, M]`, or `[B, H, N]`.
    pub types: Option<Vec<i64>>,
    /// The same with 3 of each.
    pub type_logits: Option<Tensor>,
    /// `[H]`.
    pub threshold: Option<Tensor>,
    /// `[H]`.
    pub mix: Option<Tensor>,
    /// `[B, N]`.
    pub gate_logits: Option<Tensor>,
    /// `[B, H, N, Dk]`.
    pub gates: Option<Tensor>,
    /// `[1, G, S, Dk]`.
    pub codebook: Option<Tensor>,
    /// `[1, H, S, Dk]`.
    pub codebook_q: Option<Tensor>,
    /// `[1, 1, Dk, bits]`.
    pub hyperplanes: Option<Tensor>,
    /// `[B]`.
    pub lengths: Option<Vec<usize>>,
    /// `[B]`.
    pub lengths_q: Option<Vec<usize>>,
    offsets: Option<[Vec<usize>; 2]>,
    spans: Option<Vec<[usize; 2]>>,
    positions: Option<[Vec<i64>; 2]>,
}

impl Loaded {
    /// Checks dtypes and shapes in the header, then the room they need, then reads.
    pub fn read(archive: &Archive, call: &Call<'_>) -> Result<Self, Failure> {
        let reader = Reader::new(archive)?;
        let Dims { batch, heads, kv_heads, queries, keys, dk, dv } = reader.dims;
        reader.check_room(call)?;
        let cache = [batch, kv_heads, keys];
        let own = [reader.float];
        let own_or_f32 = [reader.float, Float::F32];
        let d_o = call.gradients.then(|| reader.floats("do", &[batch, heads, queries, dv], &own)).transpose()?.flatten();
        Ok(Loaded {
            float: reader.float,
            dims: reader.dims,
            q: archive.finite("q", false)?,
            k: archive.finite("k", false)?,
            v: archive.finite("v", false)?,
            d_o,
            key_bias: reader.floats("key_bias", &cache, &own_or_f32)?,
            bias: reader.dense("bias")?.map(|shape| reader.floats("bias", &shape, &own_or_f32)).transpose()?.flatten(),
            mask: reader.mask()?,
            until: reader.integers("until", &cache)?,
            x: reader.hidden_states(call)?,
            types: reader.per_token("types", 1)?.map(|shape| reader.integers("types", &shape)).transpose()?.flatten(),
            type_logits: reader
                .per_token("type_logits", 3)?
                .map(|shape| reader.floats("type_logits", &shape, &own_or_f32))
                .transpose()?
                .flatten(),
            threshold: reader.floats("threshold", &[heads], &own_or_f32)?,
            mix: reader.floats("mix", &[heads], &own_or_f32)?,
            gate_logits: reader.floats("gate_logits", &[batch, queries], &own_or_f32)?,
            gates: reader.floats("gates", &[batch, heads, queries, dk], &own_or_f32)?,
            codebook: reader.shared("codebook", &[Some(kv_heads), None, Some(dk)])?,
            codebook_q: reader.shared("codebook_q", &[Some(heads), None, Some(dk)])?,
            hyperplanes: reader.shared("hyperplanes", &[Some(dk), None])?,
            lengths: reader.counts("lengths", &[batch])?,
            lengths_q: reader.counts("lengths_q", &[batch])?,
            offsets: reader.offsets()?,
            spans: reader.counts("key_spans", &[batch, kv_heads, 2])?.map(|flat| flat.as_chunks().0.to_vec()),
            positions: reader.positions()?,
        })
    }

    /// A copy for kernels: f64 becomes f32, and so does what they take as slices.
    pub fn in_single(&self) -> Self {
        let float = if self.float == Float::F64 { Float::F32 } else { self.float };
        let head = |tensor: &Tensor| Tensor::rounded(float, &tensor.shape, &tensor.to_f64());
        let flat = |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| Tensor::rounded(Float::F32, &tensor.shape, &tensor.to_f64()));
        Loaded {
            float,
            dims: self.dims,
            q: head(&self.q),
            k: head(&self.k),
            v: head(&self.v),
            d_o: None,
            key_bias: flat(&self.key_bias),
            bias: self.bias.as_ref().map(head),
            mask: self.mask.clone(),
            x: None,
            types: self.types.clone(),
            type_logits: flat(&self.type_logits),
            threshold: flat(&self.threshold),
            mix: flat(&self.mix),
            gate_logits: flat(&self.gate_logits),
            gates: self.gates.as_ref().map(head),
            codebook: flat(&self.codebook),
            codebook_q: flat(&self.codebook_q),
            hyperplanes: flat(&self.hyperplanes),
            until: self.until.clone(),
            lengths: self.lengths.clone(),
            lengths_q: self.lengths_q.clone(),
            offsets: self.offsets.clone(),
            spans: self.spans.clone(),
            positions: self.positions.clone(),
        }
    }

    /// Everything but q, k, v and do that gradients may be of, by name, where it is there.
    pub fn learned(&mut self) -> impl Iterator<Item = (&'static str, &mut Tensor)> {
        let Loaded { x, key_bias, bias, type_logits, threshold, gates, mix, .. } = self;
        let learned = [("type_logits", type_logits), ("threshold", threshold), ("gates", gates), ("mix", mix)];
        let all = [("x", x), ("key_bias", key_bias), ("bias", bias)].into_iter().chain(learned);
        all.into_iter().filter_map(|(name, tensor)| Some((name, tensor.as_mut()?)))
    }

    /// Everything that is read and has no gradient, by name, where it is there.
    pub fn constants(&mut self) -> impl Iterator<Item = (&'static str, &mut Tensor)> {
        let Loaded { codebook, codebook_q, hyperplanes, .. } = self;
        let all = [("codebook", codebook), ("codebook_q", codebook_q), ("hyperplanes", hyperplanes)];
        all.into_iter().filter_map(|(name, tensor)| Some((name, tensor.as_mut()?)))
    }

    /// Turns what kernels take as slices into f32.
    pub fn narrow(&mut self) {
        for (_, tensor) in self.learned().filter(|(name, _)| ["key_bias", "type_logits", "threshold", "mix"].contains(name)) {
            *tensor = std::mem::replace(tensor, Tensor::zeros(Float::F32, &[0])).converted(Float::F32);
        }
    }

    /// For the kernel and the definition, after [`Loaded::narrow`].
    pub fn inputs(&self, causal: bool) -> Result<Inputs<'_>, Error> {
        let mut inputs = Inputs::new(self.q.view("q")?, self.k.view("k")?, self.v.view("v")?, self.sight(causal)?);
        inputs.key_bias = self.key_bias.as_ref().map(Tensor::as_f32);
        inputs.bias = self.bias.as_ref().map(|bias| bias.view("bias")).transpose()?;
        inputs.until = self.until.as_deref();
        inputs.x = self.x.as_ref().map(|x| x.view("x")).transpose()?;
        inputs.types = self.types.as_deref();
        inputs.type_logits = self.type_logits.as_ref().map(Tensor::as_f32);
        inputs.threshold = self.threshold.as_ref().map(Tensor::as_f32);
        inputs.mix = self.mix.as_ref().map(Tensor::as_f32);
        inputs.gates = viewed(&self.gates, "gates")?;
        inputs.codebook = viewed(&self.codebook, "codebook")?;
        inputs.codebook_q = viewed(&self.codebook_q, "codebook_q")?;
        inputs.hyperplanes = viewed(&self.hyperplanes, "hyperplanes")?;
        Ok(inputs)
    }

    fn sight(&self, causal: bool) -> Result<Sight<'_>, Error> {
        let mut sight = if causal { Sight::causal() } else { Sight::full() };
        if let Some(lengths) = &self.lengths {
            sight = sight.lengths(lengths);
        }
        if let Some(lengths) = &self.lengths_q {
            sight = sight.lengths_q(lengths);
        }
        if let Some([queries, keys]) = &self.offsets {
            sight = sight.offsets(queries, keys);
        }
        if let Some(spans) = &self.spans {
            sight = sight.key_spans(spans);
        }
        if let Some([queries, keys]) = &self.positions {
            sight = sight.positions(queries, keys);
        }
        if let Some(mask) = &self.mask {
            sight = sight.mask(mask.mask_part([0; 4], mask.shape4())?);
        }
        Ok(sight)
    }
}

fn viewed<'a>(tensor: &'a Option<Tensor>, name: &'static str) -> Result<Option<View<'a>>, Error> {
    tensor.as_ref().map(|tensor| tensor.view(name)).transpose()
}

/// A file whose q, k, v have passed.
struct Reader<'a> {
    archive: &'a Archive,
    float: Float,
    dims: Dims,
}

impl<'a> Reader<'a> {
    fn new(archive: &'a Archive) -> Result<Self, Failure> {
        let [q, k, v] = [archive.shape4("q")?, archive.shape4("k")?, archive.shape4("v")?];
        let float = archive.float("q", &[Float::F32, Float::Bf16, Float::F16, Float::F64])?;
        for name in ["k", "v"] {
            archive.float(name, &[float])?;
        }
        let dims = Dims { batch: q[0], heads: q[1], kv_heads: k[1], queries: q[2], keys: k[2], dk: q[3], dv: v[3] };
        Ok(Reader { archive, float, dims })
    }

    fn check_room(&self, call: &Call<'_>) -> Result<(), Failure> {
        let Dims { batch, heads, queries, keys, dv, .. } = self.dims;
        let mut results = vec![vec![batch, heads, queries, dv], vec![batch, heads, queries]];
        if call.received {
            results.push(vec![batch, heads, keys]);
        }
        let mut read = vec!["q", "k", "v", "key_bias", "bias", "mask", "until", "key_positions"];
        if call.gradients {
            let inputs = ["q", "k", "v", "key_bias", "bias"].into_iter().filter_map(|name| self.archive.entry(name));
            results.extend(inputs.map(|entry| entry.shape.clone()));
            read.push("do");
        }
        check_room(self.archive, &read, &results, self.float)
    }

    fn checked(&self, name: &str, shape: &[usize]) -> Result<bool, Failure> {
        match self.archive.entry(name) {
            None => Ok(false),
            Some(entry) if entry.shape == shape => Ok(true),
            Some(entry) => Err(self.archive.refuse(name, &format!("has shape {:?}, expected {shape:?}", entry.shape))),
        }
    }

    fn floats(&self, name: &str, shape: &[usize], allowed: &[Float]) -> Result<Option<Tensor>, Failure> {
        if !self.checked(name, shape)? {
            return Ok(None);
        }
        self.archive.float(name, allowed)?;
        self.archive.finite(name, matches!(name, "key_bias" | "bias")).map(Some)
    }

    /// The shape of a tensor of pairs, if it is there and broadcasts.
    fn dense(&self, name: &str) -> Result<Option<[usize; 4]>, Failure> {
        if self.archive.entry(name).is_none() {
            return Ok(None);
        }
        let Dims { batch, heads, queries, keys, .. } = self.dims;
        let shape = self.archive.shape4(name)?;
        let fits = [1, batch].contains(&shape[0]) && [1, heads].contains(&shape[1]) && shape[2..] == [queries, keys];
        let expected = format!("has shape {shape:?}, expected [{batch} or 1, {heads} or 1, {queries}, {keys}]");
        if fits { Ok(Some(shape)) } else { Err(self.archive.refuse(name, &expected)) }
    }

    /// The shape of a tensor with a value, or several, per token and head, if it is there: of keys or of queries.
    fn per_token(&self, name: &str, values: usize) -> Result<Option<Vec<usize>>, Failure> {
        let Some(entry) = self.archive.entry(name) else { return Ok(None) };
        let Dims { batch, heads, kv_heads, queries, keys, .. } = self.dims;
        let tail: &[usize] = if values == 1 { &[] } else { &[values] };
        let shapes = [[batch, kv_heads, keys], [batch, heads, queries]].map(|shape| [&shape[..], tail].concat());
        let expected = || format!("has shape {:?}, expected {:?} for keys or {:?} for queries", entry.shape, shapes[0], shapes[1]);
        if shapes.contains(&entry.shape) { Ok(Some(entry.shape.clone())) } else { Err(self.archive.refuse(name, &expected())) }
    }

    /// x as `[B, 1, N, E]`, if the mechanism reads it and it is there.
    fn hidden_states(&self, call: &Call<'_>) -> Result<Option<Tensor>, Failure> {
        let read = call.chosen.reducer.is_some() || call.chosen.about().tensors.contains(&"x");
        let Some(entry) = self.archive.entry("x").filter(|_| read) else { return Ok(None) };
        let Dims { batch, queries, .. } = self.dims;
        let [b, n, width] = entry.shape[..] else {
            return Err(self.archive.refuse("x", &format!("has shape {:?}, expected [{batch}, {queries}, E]", entry.shape)));
        };
        if [b, n] != [batch, queries] {
            return Err(self.archive.refuse("x", &format!("has shape {:?}, expected [{batch}, {queries}, E]", entry.shape)));
        }
        self.archive.float("x", &[self.float, Float::F32])?;
        let mut x = self.archive.finite("x", false)?;
        x.shape = vec![b, 1, n, width];
        Ok(Some(x))
    }

    /// A tensor that all batch rows share, or all heads too, as one of four dimensions; sizes that are not given are the file's.
    fn shared(&self, name: &str, sizes: &[Option<usize>]) -> Result<Option<Tensor>, Failure> {
        let Some(entry) = self.archive.entry(name) else { return Ok(None) };
        let fits =
            entry.shape.len() == sizes.len() && entry.shape.iter().zip(sizes).all(|(&found, size)| size.is_none_or(|size| size == found));
        if !fits {
            let sizes: Vec<String> = sizes.iter().map(|size| size.map_or("any".into(), |size| size.to_string())).collect();
            return Err(self.archive.refuse(name, &format!("has shape {:?}, expected [{}]", entry.shape, sizes.join(", "))));
        }
        self.archive.float(name, &[self.float, Float::F32])?;
        let mut tensor = self.archive.finite(name, false)?;
        tensor.shape = [vec![1; 4 - entry.shape.len()], entry.shape.clone()].concat();
        Ok(Some(tensor))
    }

    fn mask(&self) -> Result<Option<Tensor>, Failure> {
        if self.dense("mask")?.is_none() {
            return Ok(None);
        }
        self.archive.check_dtype("mask", ["BOOL", "U8"])?;
        self.archive.read("mask").map(Some)
    }

    fn integers(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<i64>>, Failure> {
        if !self.checked(name, shape)? {
            return Ok(None);
        }
        self.archive.check_dtype(name, ["I32", "I64"])?;
        Ok(Some(self.archive.read(name)?.to_i64()))
    }

    /// Integers of at least 0.
    fn counts(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<usize>>, Failure> {
        let Some(integers) = self.integers(name, shape)? else { return Ok(None) };
        let count = |(at, &integer): (usize, &i64)| {
            usize::try_from(integer).map_err(|_| self.archive.refuse(name, &format!("holds {integer} at {at}; it must be at least 0")))
        };
        integers.iter().enumerate().map(count).collect::<Result<_, _>>().map(Some)
    }

    fn offsets(&self) -> Result<Option<[Vec<usize>; 2]>, Failure> {
        let Some([queries, keys]) = self.pair("offsets_q", "offsets_k")? else { return Ok(None) };
        if self.dims.batch != 1 {
            return Err(self.archive.refuse("offsets_q", &format!("packs sequences, so q needs a batch of 1, not {}", self.dims.batch)));
        }
        let length = |shape: &[usize]| [shape.first().copied().unwrap_or(0)];
        Ok(self.counts("offsets_q", &length(queries))?.zip(self.counts("offsets_k", &length(keys))?).map(<[_; 2]>::from))
    }

    fn positions(&self) -> Result<Option<[Vec<i64>; 2]>, Failure> {
        let Dims { batch, kv_heads, queries, keys, .. } = self.dims;
        if self.pair("query_positions", "key_positions")?.is_none() {
            return Ok(None);
        }
        let queries = self.integers("query_positions", &[batch, queries])?;
        Ok(queries.zip(self.integers("key_positions", &[batch, kv_heads, keys])?).map(<[_; 2]>::from))
    }

    /// The shapes of two tensors that come together or not at all.
    fn pair(&self, first: &str, second: &str) -> Result<Option<[&[usize]; 2]>, Failure> {
        match (self.archive.entry(first), self.archive.entry(second)) {
            (None, None) => Ok(None),
            (Some(first), Some(second)) => Ok(Some([&first.shape, &second.shape])),
            (Some(_), None) => Err(self.archive.refuse(first, &format!("needs the tensor \"{second}\" beside it"))),
            (None, Some(_)) => Err(self.archive.refuse(second, &format!("needs the tensor \"{first}\" beside it"))),
        }
    }
}
