//! What is measured, and one case after the other.

use super::case::{Case, Phase};
use super::heads::{Heads, Sizes, Source, Wanted};
use super::log::Log;
use super::measure::Evictor;
use super::record::{Machine, Record};
use crate::chosen::Chosen;
use crate::failure::Failure;
use crate::memory;
use indicatif::{ProgressBar, ProgressStyle};
use regard_core::Par;
use regard_core::mechanism::Causality;
use std::collections::BTreeMap;

/// What is measured.
pub struct Plan {
    /// The mechanisms.
    pub chosen: Vec<Chosen>,
    /// Their passes.
    pub phases: Vec<Phase>,
    /// Tokens.
    pub lengths: Vec<usize>,
    /// Whether queries see no later keys: one form, or both.
    pub forms: Vec<bool>,
    /// Where inputs come from.
    pub source: Source,
    /// Where further inputs come from, on which approximations are held against exact attention too.
    pub captured: Option<Source>,
    /// Counted runs; by length without it.
    pub runs: Option<usize>,
    /// Mechanisms whose time is reckoned beyond a length.
    pub extrapolate: BTreeMap<String, usize>,
}

/// One row of the table to be.
#[derive(Clone, Copy)]
struct Place<'p> {
    length: usize,
    causal: bool,
    chosen: &'p Chosen,
    phase: Phase,
}

impl Plan {
    fn runs(&self, length: usize) -> usize {
        self.runs.unwrap_or(match length {
            0..=4096 => 5,
            4097..=8192 => 2,
            _ => 1,
        })
    }

    /// Every row, length by length.
    fn places(&self) -> impl Iterator<Item = Place<'_>> {
        let of_length = move |&length: &usize| {
            let rows = self.forms.iter().flat_map(move |&causal| self.chosen.iter().map(move |chosen| (causal, chosen)));
            let with_phase = move |(causal, chosen)| self.phases.iter().map(move |&phase| Place { length, causal, chosen, phase });
            rows.flat_map(with_phase)
        };
        self.lengths
            .iter()
            .flat_map(of_length)
            .filter(|place| is_measured(place.chosen, place.phase) && has_form(place.chosen, place.causal))
    }

    /// Tells the sources what the mechanisms read beside q, k and v.
    pub fn want(&mut self) {
        let tensors = self.chosen.iter().flat_map(|chosen| chosen.reads_first().iter().copied()).collect();
        let most = |tensor| self.chosen.iter().filter_map(|chosen| chosen.mechanism.codewords(tensor)).max().unwrap_or(0);
        let wanted = Wanted { tensors, codewords: [most("codebook"), most("codebook_q")] };
        for source in self.captured.iter_mut().chain([&mut self.source]) {
            source.wanted = wanted.clone();
        }
    }

    /// Refuses lengths whose tensors, results and definition do not fit into memory.
    pub fn check_room(&self) -> Result<(), Failure> {
        let longest = self.lengths.iter().copied().max().unwrap_or_default();
        let Sizes { batch, heads, kv_heads, dk, dv } = self.source.sizes;
        let beside = self.source.wanted.tensors.iter().filter(|name| ["x", "gates"].contains(name)).count() * heads * dk;
        let row = (heads * (dk + dv) + kv_heads * (dk + dv) + beside) as f64;
        let stored = 2 * self.source.float.bytes() + size_of::<f64>();
        let evictor = if self.phases.contains(&Phase::Decode) { Evictor::BYTES as f64 } else { 0.0 };
        memory::check_room(batch as f64 * longest as f64 * row * stored as f64 + evictor, &format!("length {longest}"))
    }

    /// A bar as long as there are rows.
    pub fn progress(&self) -> ProgressBar {
        let bar = ProgressBar::new(self.places().count() as u64);
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}");
        bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    }

    /// Measures every row that the log does not have yet and reports all of them.
    pub fn measure(
        &self,
        log: &mut Log<'_>,
        par: Par,
        bar: &ProgressBar,
        report: impl Fn(&Record) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let evictor = self.phases.contains(&Phase::Decode).then(Evictor::new);
        let mut heads: Option<(Heads, Option<Heads>)> = None;
        let mut length = usize::MAX;
        for place in self.places() {
            bar.set_message(format!("{} {} at {}", place.chosen.about().name, place.phase.name(), place.length));
            if let Some(record) = log.recall(|record| self.is_of(record, place)) {
                report(record)?;
                bar.inc(1);
                continue;
            }
            if place.length != length {
                drop(heads.take());
                length = place.length;
            }
            let made = heads.get_or_insert_with(|| (self.source.heads(length), self.captured.as_ref().map(|source| source.heads(length))));
            let record = self.row(place, made, (log.records(), evictor.as_ref()), (log.machine(), par))?;
            report(&record)?;
            log.add(record)?;
            bar.inc(1);
        }
        Ok(())
    }

    /// Whether an earlier record is the one that would be made; a time that was reckoned does where it would be again.
    fn is_of(&self, record: &Record, Place { length, causal, chosen, phase }: Place<'_>) -> bool {
        let Sizes { batch, heads, kv_heads, dk, .. } = self.source.sizes;
        let name = chosen.about().name;
        let words = [&record.mechanism, &record.pass, &record.dtype].map(String::as_str) == [name, phase.name(), self.source.float.name()];
        let sizes = [record.batch, record.heads, record.kv_heads, record.head_dim, record.length] == [batch, heads, kv_heads, dk, length];
        let reckoned = self.is_reckoned(name, length);
        words && sizes && record.causal == causal && record.options == chosen.options() && (record.extrapolated_from.is_none() || reckoned)
    }

    fn is_reckoned(&self, name: &str, length: usize) -> bool {
        self.extrapolate.get(name).is_some_and(|&most| length > most)
    }

    fn row(
        &self,
        place: Place<'_>,
        (heads, captured): &(Heads, Option<Heads>),
        (earlier, evictor): (&[Record], Option<&Evictor>),
        (machine, par): (&Machine, Par),
    ) -> Result<Record, Failure> {
        let Place { length, causal, chosen, phase } = place;
        let name = chosen.about().name;
        let case = Case { chosen, phase, source: &self.source, heads, causal, par };
        if self.is_reckoned(name, length) {
            let same = |record: &&Record| record.mechanism == name && record.pass == phase.name() && record.causal == causal;
            let shorter = earlier.iter().filter(|record| record.extrapolated_from.is_none()).rfind(same);
            if let Some(shorter) = shorter {
                return case.extrapolated(shorter, machine);
            }
        }
        let mut record = case.measured(self.runs(length), evictor, machine)?;
        if let (Some(source), Some(captured), Phase::Forward) = (&self.captured, captured, phase)
            && let Some(approximation) = &mut record.approximation
        {
            let usage = |error| Failure::Usage(format!("{name}: {error}"));
            approximation.captured = Case { source, ..case }.distance_of(captured).map_err(usage)?;
        }
        Ok(record)
    }
}

/// A mechanism that needs as many queries as keys has no pass of one query over many keys: it decodes by its state.
pub fn is_measured(chosen: &Chosen, phase: Phase) -> bool {
    phase != Phase::Decode || !chosen.about().square
}

fn has_form(chosen: &Chosen, causal: bool) -> bool {
    match chosen.about().causality {
        Causality::Optional => true,
        Causality::Required => causal,
        Causality::Never => !causal,
    }
}
