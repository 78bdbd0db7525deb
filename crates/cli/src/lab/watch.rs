//! Progress of training, on standard error: a bar where there is a terminal, a line now and then where there is none.

use indicatif::{ProgressBar, ProgressStyle};
use regard_lab::compare::Progress;
use regard_lab::train::Event;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between lines where nobody watches a bar.
const PAUSE: Duration = Duration::from_secs(10);

/// Who tells of a run.
pub struct Watch {
    bar: ProgressBar,
    name: String,
    last: Instant,
}

impl Watch {
    /// Of a run, or of the first of several.
    pub fn new(name: &str) -> Self {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        bar.set_style(ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
        Watch { bar, name: name.to_owned(), last: Instant::now() }
    }

    /// An event of training.
    pub fn event(&mut self, event: &Event) {
        match event {
            Event::Step { step, loss, tokens_per_s, left } => {
                let text = format!("{}: step {step}, loss {loss:.4}, {:.0} tokens/s, {} left", self.name, tokens_per_s, clock(*left));
                self.say(text, false);
            }
            Event::Evaluated { step, loss, quality } => {
                self.say(format!("{}: step {step}, validation loss {loss:.4}, quality {quality:.4}", self.name), true);
            }
            Event::Saved(_) => {}
        }
    }

    /// Progress of a comparison.
    pub fn progress(&mut self, progress: Progress<'_>) {
        match progress {
            Progress::Begins(name, seed) => self.name = format!("{name}, seed {seed}"),
            Progress::Training(event) => self.event(event),
            Progress::Found(name, seed) => self.say(format!("{name}, seed {seed}: finished before"), true),
            Progress::Finished(name, finished) => {
                let text = format!(
                    "{name}, seed {}: {:.4} after {} steps, {:.0} s",
                    finished.seed, finished.quality, finished.steps, finished.seconds
                );
                self.say(text, true);
            }
            Progress::Measures(name, length) => self.say(format!("{name}: speed at {length} tokens"), false),
        }
    }

    fn say(&mut self, text: String, matters: bool) {
        if !self.bar.is_hidden() {
            self.bar.set_message(text);
            self.bar.tick();
        } else if matters || self.last.elapsed() >= PAUSE {
            self.last = Instant::now();
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{}:{:02} min", seconds / 60, seconds % 60),
        _ => format!("{}:{:02} h", seconds / 3600, seconds / 60 % 60),
    }
}
