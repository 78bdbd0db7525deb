//! One mechanism, one pass, one length: measured, then held against its definition.

use super::accuracy::{self, Deviation, Differences};
use super::heads::{Heads, Sizes, Source};
use super::measure::{Evictor, Timing, measure};
use super::record::{Approximation, Machine, Record};
use crate::chosen::Chosen;
use crate::failure::Failure;
use crate::tensor::{Float, Tensor};
use clap::ValueEnum;
use regard_core::mechanism::{Choices, Gradients, Inputs, Mechanism, Pass, Plan, Planned};
use regard_core::oracle::Oracle;
use regard_core::{Dims, Error, Output, Par, Saved, Sight, View};

/// Gradients are compared as a whole up to so many pairs times widths; beyond, dq alone in sampled rows where the definition has them, or all of
/// a smaller call.
const WHOLE: f64 = 2e7;
/// Kv heads of a smaller call in place of one that is too large to compare; two mechanisms may share them.
const FEW_HEADS: usize = 2;
/// What approximations are held against.
const EXACT: &str = "exact";

/// What is timed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Phase {
    /// All queries at once
    Forward,
    /// The same, and then its gradients
    Backward,
    /// One query
    Decode,
}

impl Phase {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Forward => "forward",
            Phase::Backward => "backward",
            Phase::Decode => "decode",
        }
    }
}

/// One row of the table to be.
pub struct Case<'a> {
    /// The mechanism.
    pub chosen: &'a Chosen,
    /// What of it.
    pub phase: Phase,
    /// Where inputs come from.
    pub source: &'a Source,
    /// The inputs.
    pub heads: &'a Heads,
    /// Whether queries see no later keys.
    pub causal: bool,
    /// How it runs.
    pub par: Par,
}

/// What a call writes to.
struct Results {
    o: Tensor,
    lse: Tensor,
    gradients: Option<[Tensor; 3]>,
}

/// What a call has to do at least.
struct Work {
    flops: f64,
    bytes: f64,
}

impl Case<'_> {
    /// Measures, and refuses numbers of a call whose results are wrong.
    pub fn measured(&self, runs: usize, evictor: Option<&Evictor>, machine: &Machine) -> Result<Record, Failure> {
        let usage = |error: Error| Failure::Usage(format!("{}: {error}", self.chosen.about().name));
        let mut results = self.results(self.heads);
        let inputs = self.inputs(self.heads).map_err(usage)?;
        let evictor = evictor.filter(|_| self.phase == Phase::Decode);
        let timing = measure(self.par, runs, evictor, || self.call(&inputs, &mut results)).map_err(usage)?;
        let choices = self.choices(&inputs).map_err(usage)?;
        let plan = self.chosen.mechanism.plan(&inputs, &choices, self.pass()).map_err(usage)?;
        let work = self.work(&plan);
        let error = self.error(&plan, &results).map_err(usage)?;
        if let Some(error) = error {
            self.check_sane(error)?;
        }
        let approximation = self.approximation(&inputs, &results).map_err(usage)?;
        Ok(Record { error, approximation, ..self.record(&timing, &work, machine) })
    }

    /// What it would take if time grew with the work from a shorter length on.
    pub fn extrapolated(&self, shorter: &Record, machine: &Machine) -> Result<Record, Failure> {
        let usage = |error: Error| Failure::Usage(format!("{}: {error}", self.chosen.about().name));
        let inputs = self.inputs(self.heads).map_err(usage)?;
        let choices = self.choices(&inputs).map_err(usage)?;
        let work = self.work(&self.chosen.mechanism.plan(&inputs, &choices, self.pass()).map_err(usage)?);
        let seconds = work.flops / (shorter.gflops * 1e9);
        Ok(Record { runs: 0, extrapolated_from: Some(shorter.length), ..self.record(&Timing::once(seconds), &work, machine) })
    }

    fn record(&self, timing: &Timing, work: &Work, machine: &Machine) -> Record {
        let Dims { batch, heads, kv_heads, keys, dk, .. } = self.heads.dims;
        let gflops = work.flops / timing.median() / 1e9;
        let gbps = (self.phase == Phase::Decode).then(|| work.bytes / timing.median() / 1e9);
        Record {
            mechanism: self.chosen.about().name.into(),
            pass: self.phase.name().into(),
            dtype: self.source.float.name().into(),
            batch,
            heads,
            kv_heads,
            head_dim: dk,
            length: keys,
            causal: self.causal,
            options: self.chosen.options(),
            median_s: timing.median(),
            min_s: timing.shortest(),
            runs: timing.runs(),
            gflops,
            gbps,
            ceiling_fraction: gbps.map_or(gflops / machine.arithmetic(self.source.float), |gbps| gbps / machine.reading()),
            extra_bytes: timing.extra_bytes,
            error: None,
            approximation: None,
            extrapolated_from: None,
        }
    }

    /// Dropout acts where training would run.
    fn pass(&self) -> Pass {
        Pass { training: self.phase != Phase::Decode, ..Pass::default() }
    }

    fn queries(&self) -> usize {
        if self.phase == Phase::Decode { 1 } else { self.heads.dims.queries }
    }

    /// All queries, or the last one.
    fn inputs<'h>(&self, heads: &'h Heads) -> Result<Inputs<'h>, Error> {
        let Dims { batch, heads: h, queries, dk, .. } = heads.dims;
        let n = self.queries();
        let q = heads.q.part([0, 0, queries - n, 0], [batch, h, n, dk], "q")?;
        let sight = if self.causal { Sight::causal() } else { Sight::full() };
        let mut inputs = Inputs::new(q, heads.k.view("k")?, heads.v.view("v")?, sight);
        let reads = |tensor| self.chosen.reads_first().contains(&tensor);
        let view = |tensor: &'h Option<Tensor>, name| tensor.as_ref().filter(|_| reads(name)).map(|tensor| tensor.view(name)).transpose();
        inputs.x = view(&heads.beside.x, "x")?;
        inputs.gates = view(&heads.beside.gates, "gates")?;
        inputs.codebook = view(&heads.beside.codebook, "codebook")?;
        inputs.codebook_q = view(&heads.beside.codebook_q, "codebook_q")?;
        inputs.mix = heads.beside.mix.as_deref().filter(|_| reads("mix"));
        inputs.types = heads.beside.types.as_deref().filter(|_| reads("types"));
        Ok(inputs)
    }

    fn results(&self, inputs: &Heads) -> Results {
        let Dims { batch, heads, dv, .. } = inputs.dims;
        let like = |tensor: &Tensor| Tensor::zeros(self.source.float, &tensor.shape);
        Results {
            o: Tensor::zeros(self.source.float, &[batch, heads, self.queries(), dv]),
            lse: Tensor::zeros(Float::F32, &[batch, heads, self.queries()]),
            gradients: (self.phase == Phase::Backward).then(|| [&inputs.q, &inputs.k, &inputs.v].map(like)),
        }
    }

    fn call(&self, inputs: &Inputs<'_>, results: &mut Results) -> Result<(), Error> {
        let mechanism = &self.chosen.mechanism;
        let Results { o, lse, gradients } = results;
        let mut output = Output { o: o.view_mut("o")?, lse: Some(lse.as_f32_mut()) };
        let choices = mechanism.choose(inputs, self.pass(), self.par)?;
        let plan = mechanism.plan(inputs, &choices, self.pass())?;
        plan.forward(&mut output, self.par)?;
        let Some([dq, dk, dv]) = gradients else { return Ok(()) };
        let saved = Saved { o: o.view("o")?, lse: lse.as_f32(), d_o: self.heads.d_o.view("do")? };
        let [dq, dk, dv] = [Some(dq.view_mut("dq")?), Some(dk.view_mut("dk")?), Some(dv.view_mut("dv")?)];
        let mut gradients = Gradients::from(regard_core::Gradients { dq, dk, dv, ..regard_core::Gradients::default() });
        plan.backward(&saved, &mut gradients, self.par)
    }

    fn choices(&self, inputs: &Inputs<'_>) -> Result<Choices, Error> {
        self.chosen.mechanism.choose(inputs, self.pass(), self.par)
    }

    /// Plain causal attention counts as half of all pairs, everything else as the pairs that see each other.
    fn work(&self, plan: &Planned<'_>) -> Work {
        let (dims, seen) = (plan.dims(), plan.pairs());
        let Dims { batch, heads, queries: n, dk, dv, .. } = dims;
        let triangle = self.causal && seen == (batch * heads) as u64 * (n as u64 * (n as u64 + 1) / 2) && n > 1;
        let pairs = if triangle { (batch * heads) as f64 * (n as f64).powi(2) / 2.0 } else { seen as f64 };
        let factor = if self.phase == Phase::Backward { 3.5 } else { 1.0 };
        // However often a mechanism meets a key, it reads it once.
        let read = (seen as f64 / dims.group() as f64).min((batch * dims.kv_heads * dims.keys) as f64);
        let bytes = read * ((dk + dv) * self.source.float.bytes()) as f64;
        Work { flops: factor * 2.0 * (dk + dv) as f64 * pairs, bytes }
    }

    /// Against the mechanism's own definition: gradients after a backward pass, else o.
    fn error(&self, plan: &Planned<'_>, results: &Results) -> Result<Option<Deviation>, Error> {
        let oracle = plan.oracle();
        let dims = Dims { queries: self.queries(), ..self.heads.dims };
        // A definition may go through all pairs, and a tape of it remember all that it did there, whatever the mechanism skips.
        let pairs_of_all = (dims.batch * dims.heads * dims.queries * dims.keys) as f64;
        let rows = accuracy::sample(&dims);
        let Some(gradients) = &results.gradients else {
            return Ok(accuracy::of_forward(oracle.as_ref(), results.o.view("o")?, &rows).map(Differences::deviation));
        };
        if pairs_of_all * (dims.dk + dims.dv) as f64 > WHOLE {
            let Some(problem) = plan.problem() else { return self.error_of_few().map(Some) };
            let [dq, ..] = gradients;
            let differences = accuracy::of_dq(&problem.definition(), self.heads.d_o.view("do")?, dq.view("dq")?, &rows);
            return Ok(differences.map(Differences::deviation));
        }
        Ok(Some(self.error_of_all(oracle.as_ref(), gradients)))
    }

    /// All gradients against a tape of the definition.
    fn error_of_all(&self, oracle: &dyn Oracle, gradients: &[Tensor; 3]) -> Deviation {
        let truth = oracle.truth(Some(&self.heads.d_o.to_f64()));
        let mut differences = Differences::default();
        for (found, name) in gradients.iter().zip(["dq", "dk", "dv"]) {
            let defined = truth.iter().find(|defined| defined.name == name);
            differences.add(found.to_f64(), defined.map_or(&[][..], |defined| &defined.values));
        }
        differences.deviation()
    }

    /// The same of the first tokens by themselves, in two kv heads: as many as a tape can hold.
    fn error_of_few(&self) -> Result<Deviation, Error> {
        let Dims { kv_heads, keys, dk, dv, .. } = self.heads.dims;
        let some = kv_heads.min(FEW_HEADS);
        let heads = some * self.heads.dims.group();
        let length = keys.min((WHOLE / (heads * (dk + dv)) as f64).sqrt() as usize).max(1);
        let few = self.source.heads_of(Sizes { batch: 1, heads, kv_heads: some, dk, dv }, length);
        let case = Case { heads: &few, ..*self };
        let (inputs, mut results) = (case.inputs(&few)?, case.results(&few));
        case.call(&inputs, &mut results)?;
        let choices = case.choices(&inputs)?;
        let oracle = self.chosen.mechanism.plan(&inputs, &choices, self.pass())?.oracle();
        let deviation = results.gradients.map(|gradients| case.error_of_all(oracle.as_ref(), &gradients));
        deviation.map(|deviation| Deviation { length: Some(length), ..deviation }).ok_or_else(|| Error::Combination("no gradients".into()))
    }

    /// Against exact attention, on random inputs and on those of a file.
    fn approximation(&self, inputs: &Inputs<'_>, results: &Results) -> Result<Option<Approximation>, Error> {
        if self.chosen.about().name == EXACT {
            return Ok(None);
        }
        let here = self.distance(inputs, results.o.view("o")?)?;
        if self.source.captured.is_none() {
            return Ok(Some(Approximation { random: here, captured: None }));
        }
        let heads = self.source.random_heads(self.heads.dims.keys);
        Ok(Some(Approximation { random: self.distance_of(&heads)?, captured: here }))
    }

    /// How far the mechanism is from exact attention on these inputs.
    pub fn distance_of(&self, heads: &Heads) -> Result<Option<Deviation>, Error> {
        let inputs = self.inputs(heads)?;
        let mut o = self.results(heads).o;
        let mut output = Output { o: o.view_mut("o")?, lse: None };
        self.chosen.mechanism.forward(&inputs, self.pass(), &mut output, self.par)?;
        self.distance(&inputs, o.view("o")?)
    }

    /// How far some rows of `o` are from exact attention.
    fn distance(&self, inputs: &Inputs<'_>, o: View<'_>) -> Result<Option<Deviation>, Error> {
        let exact = Mechanism::by_name(EXACT).ok_or_else(|| Error::Combination("there is no exact attention".into()))?;
        let rows = accuracy::sample(&Dims { queries: self.queries(), ..inputs.dims() });
        let inputs = Inputs::new(inputs.q, inputs.k, inputs.v, inputs.sight);
        let choices = exact.choose(&inputs, Pass::default(), self.par)?;
        let oracle = exact.plan(&inputs, &choices, Pass::default())?.oracle();
        Ok(accuracy::of_forward(oracle.as_ref(), o, &rows).map(Differences::deviation))
    }

    /// Speed means nothing if the results are wrong.
    fn check_sane(&self, error: Deviation) -> Result<(), Failure> {
        let limit = match self.source.float {
            Float::F32 | Float::F64 => 1e-3,
            Float::F16 => 2e-2,
            Float::Bf16 => 1e-1,
        };
        let relative = error.rel_l2.unwrap_or(error.max_abs);
        if relative <= limit {
            return Ok(());
        }
        let (name, pass, length) = (self.chosen.about().name, self.phase.name(), self.heads.dims.keys);
        Err(Failure::Data(format!(
            "{name} {pass} at length {length} is off by a fraction of {relative:.1e} from its definition, more than {limit:.0e}; this is a bug, please report it"
        )))
    }
}
