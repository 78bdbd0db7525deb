//! What the program's own memory comes to: how much there is left, and how much a piece of work needs.

use crate::failure::Failure;
use cap::Cap;
use mimalloc::MiMalloc;
use std::fs;
use std::hint::black_box;

/// Training makes and drops hundreds of megabytes a step, which the system's allocator hands back each time, page by page.
#[global_allocator]
static HEAP: Cap<MiMalloc> = Cap::new(MiMalloc, usize::MAX);

/// Number of mimalloc's option `purge_delay`.
const PURGE_DELAY: i32 = 15;
/// How long freed memory stays with the program.
const KEPT_MILLISECONDS: i64 = 10_000;

/// Keeps freed memory for ten seconds. A training step needs its memory again a tenth of a second later; handed back after mimalloc's ten
/// milliseconds it comes as new pages, which the system clears: a quarter of a step's time.
pub fn keep_freed() {
    // SAFETY: the option is a number that mimalloc reads. It is set before the program has a second thread.
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, KEPT_MILLISECONDS);
    }
}

/// Refuses work on data that does not fit into the memory that is free.
pub fn check_room(bytes: f64, what: &str) -> Result<(), Failure> {
    let refuse = |free: String| Failure::Data(format!("{what} would take {} of memory{free}", readable(bytes)));
    if let Some(free) = available().filter(|&free| bytes > free) {
        return Err(refuse(format!(", {} are free; use smaller tensors or a larger machine", readable(free))));
    }
    let mut room = Vec::<u8>::new();
    let granted = bytes < isize::MAX as f64 && room.try_reserve_exact(bytes as usize).is_ok();
    black_box(&room);
    if granted { Ok(()) } else { Err(refuse(", more than the system grants; use smaller tensors or a larger machine".into())) }
}

/// Bytes that new work can take without swapping, where the system says.
fn available() -> Option<f64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kilobytes = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(kilobytes.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? * 1024.0)
}

/// The most bytes that were on the heap at once during `work` beyond those that were there before.
///
/// The allocator knows the peak since the program began; memory that is reserved and never touched lifts the present
/// amount up to that peak first, so that whatever comes on top is the work's own.
pub fn peak_during<T>(work: impl FnOnce() -> T) -> (T, Option<usize>) {
    let mut ballast = Vec::<u8>::new();
    let known = ballast.try_reserve_exact(HEAP.max_allocated().saturating_sub(HEAP.allocated())).is_ok();
    let before = HEAP.allocated();
    let result = work();
    let peak = HEAP.max_allocated();
    black_box(&ballast);
    (result, known.then(|| peak.saturating_sub(before)))
}

/// Bytes for people.
pub fn readable(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut number = bytes;
    let mut unit = 0;
    while number >= 1024.0 && unit + 1 < units.len() {
        number /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{number:.0} B") } else { format!("{number:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEBIBYTE: usize = 1 << 20;

    #[test]
    fn the_peak_is_the_works_own() {
        // To the nearest: other tests of this program hold some hundred kilobytes while this one runs.
        let nearest = |bytes: usize| (bytes + MEBIBYTE / 2) / MEBIBYTE;
        let held = |mebibytes: usize| nearest(peak_during(|| black_box(vec![1u8; mebibytes * MEBIBYTE]).len()).1.unwrap());
        let kept = black_box(vec![1u8; 7 * MEBIBYTE]);
        assert_eq!((held(40), held(10), held(20)), (40, 10, 20));
        drop(kept);
        assert_eq!(held(10), 10);
    }

    #[test]
    fn people_read_bytes_in_units() {
        assert_eq!([512.0, 2048.0, 1.5e6, 1e300].map(readable)[..3], ["512 B", "2.0 KiB", "1.4 MiB"]);
    }
}
